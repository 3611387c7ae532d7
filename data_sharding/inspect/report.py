"""Report of a corpus: text for a terminal, ``report.html`` in one file, and ``README.md``, a dataset card.

The card begins with what the Hugging Face Hub reads.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import yaml
from markupsafe import Markup

from mcsp.data_sharding.bids.reasons import REASONS
from mcsp.data_sharding.bids.tables import read_sources, terms_of
from mcsp.data_sharding.inspect import charts
from mcsp.data_sharding.inspect.survey import EXAMPLE_CHANNELS, FREQUENCIES, QUANTITIES, Group, Quantity, survey
from mcsp.data_sharding.store.files import Location, write_atomic
from mcsp.data_sharding.store.index import Rejection, read_rejected
from mcsp.data_sharding.store.reader import Corpus
from mcsp.page import render
from mcsp.schema import MODALITIES, SCALE_FREE, Modality, Window
from mcsp.wording import columns, counted, listed, markdown

REPORT_NAME = "report.html"

_EXAMPLES_PER_REASON = 3
# From these on a site is listed under "Worth a look"; ours, but for the displacement, a limit in common use
# (Power et al. 2014, NeuroImage 84).
_LOOK_REJECTED, _LOOK_AMPLITUDE, _LOOK_FD_MM = 0.05, 4.0, 0.5


def index_table(index: dict[str, Any]) -> str:
    """Found, stored and rejected recordings and hours per site, and how often each reason occurred."""
    rows: list[tuple[str, ...]] = [("site", "found", "stored", "rejected", "subjects", "hours")]
    for site, counts in [*index["totals"]["sites"].items(), ("all", index["totals"]["all"])]:
        name = f"{site} (simulated)" if counts.get("simulated") else site
        values = (counts["found"], counts["recordings"], counts["rejected"], counts["subjects"])
        rows.append((name, *map(str, values), f"{counts['hours']:.2f}"))
    lines = columns(rows, right=1)
    for reason, n in index["reasons"].items():
        lines += [f"rejected {n} x {reason}: {REASONS[reason].meaning}", f"  what to do: {REASONS[reason].remedy}"]
    return "\n".join(lines)


def write_report(path: Location) -> Location:
    """Write ``report.html`` and ``README.md`` into the finished corpus in ``path``, which may be remote.

    Returns:
        the report.

    Raises:
        ValueError: there is no finished corpus.
        OSError: the folder cannot be written.
    """
    corpus = Corpus(str(path))
    file = path / REPORT_NAME
    groups = survey(corpus, path)
    write_atomic(file, make_page(corpus.index, groups, read_rejected(path)).encode())
    write_atomic(path / CARD_NAME, dataset_card(corpus.index, _held(groups), read_sources(path)).encode())
    corpus.close()
    return file


def make_page(index: dict[str, Any], groups: Sequence[Group], rejected: Iterable[Rejection]) -> str:
    """The page for the index of a corpus and its survey: the same text every time, under 5 MB at 50 sites."""
    sites = sorted({group.site for group in groups})
    return render(
        "corpus.html.jinja",
        title="Corpus report",
        footer="Made from the index of the corpus and a few windows of each site.",
        index=index,
        simulated=[name for name, site in index["totals"]["sites"].items() if site["simulated"]],
        look=_worth_a_look(index, groups),
        modalities={m: MODALITY_NAMES[m] for m in ORDER},
        places={site: f"site-{k}" for k, site in enumerate(sites)},  # of which the page's links speak
        holds=_held(groups),
        quarantined=_quarantined(index, rejected),
        side_by_side=side_by_side(groups),
        site_charts=site_charts(groups),
        config=json.dumps(index["config"], indent=1, sort_keys=True),
    )


def _worth_a_look(index: dict[str, Any], groups: Sequence[Group]) -> list[str]:
    lines = []
    for name, site in index["totals"]["sites"].items():
        if site["rejected"] > _LOOK_REJECTED * site["found"]:
            share = 100 * site["rejected"] / site["found"]
            lines.append(f"{name}: {site['rejected']} of {site['found']} recordings quarantined ({share:.0f} %)")
    for modality in ORDER:
        of_modality = [g for g in groups if g.modality == modality]
        medians = {g.site: float(np.median(g.values["amplitude"])) for g in of_modality if "amplitude" in g.values}
        usual = float(np.median(list(medians.values()))) if medians else 0.0
        for name, amplitude in medians.items():
            if usual > 0 and not 1 / _LOOK_AMPLITUDE < amplitude / usual < _LOOK_AMPLITUDE:
                lines.append(
                    f"{name}: {MODALITY_NAMES[modality]} amplitude {amplitude:.3g}, the median of all sites is "
                    f"{usual:.3g}; is its unit right?"
                )
        for group in of_modality:
            fd = group.values.get("mean_fd_mm")
            if fd is not None and np.median(fd) > _LOOK_FD_MM:
                lines.append(f"{group.site}: median framewise displacement {np.median(fd):.2f} mm")
            if len(group.sfreq) > 1:
                lines.append(f"{group.site}: {MODALITY_NAMES[modality]} with {_rates(group)}")
            lines += [f"{group.site}: cannot be read: {text}" for text in group.unreadable]
    return lines


def _held(groups: Sequence[Group]) -> dict[tuple[str, str], list[str]]:
    holds: dict[tuple[str, str], list[str]] = {}
    for group in groups:
        counts = sorted(group.channels)
        channels = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        channels += " parcels" if group.modality == "fmri" else " channels"
        text = f"{counted(len(group.rows), 'recording')}, {_rates(group)}, {channels}, in {_UNIT_NAMES[group.unit]}"
        holds.setdefault((group.site, group.modality), []).append(text)
    return holds


def _rates(group: Group) -> str:
    """Sampling rates as the modality's people say them; the common ones first."""
    counts: Counter[str] = Counter()
    for sfreq, n in group.sfreq.items():
        counts[f"t_r {1 / sfreq:.4g} s" if group.modality == "fmri" else f"{sfreq:.4g} Hz"] += n
    if len(counts) == 1:
        return next(iter(counts))
    return listed((f"{name} ({n})" for name, n in counts.most_common()), 3)


def _quarantined(index: dict[str, Any], rejected: Iterable[Rejection]) -> list[dict[str, Any]]:
    """Facts of each reason, the most frequent first."""
    sites: dict[str, Counter[str]] = {}
    examples: dict[str, list[Rejection]] = {}
    for row in rejected:
        sites.setdefault(row.reason, Counter())[row.site] += 1
        shown = examples.setdefault(row.reason, [])
        if len(shown) < _EXAMPLES_PER_REASON:
            shown.append(row)
    return [
        {
            "reason": reason,
            "means": REASONS[reason],
            "count": n,
            "sites": listed((f"{site} {m:,}" for site, m in sites[reason].most_common()), 5),
            "examples": examples[reason],
        }
        for reason, n in sorted(index["reasons"].items(), key=lambda item: (-item[1], item[0]))
    ]


MODALITY_NAMES: dict[Modality, str] = {"eeg": "EEG", "fmri": "fMRI"}
ORDER: tuple[Modality, ...] = tuple(sorted(MODALITIES))  # in tables and on the page
_UNIT_NAMES = {"uV": "µV", "percent": "%", SCALE_FREE: SCALE_FREE}


def side_by_side(groups: Sequence[Group]) -> list[Markup]:
    """One chart per modality and quantity, with a row per site."""
    drawn = []
    for modality, quantity, rows in _distributions(groups):
        edges, log = charts.bins(np.concatenate([values for _, values in rows]), quantity.whole)
        low = float(edges[0] if log else max(edges[0], 0.0))
        title = f"{MODALITY_NAMES[modality]}: {quantity.title[modality]}"
        drawn.append(charts.ranges(rows, (low, float(edges[-1])), log, title))
    return drawn


def site_charts(groups: Sequence[Group]) -> dict[str, list[list[Markup]]]:
    """By site, rows of charts: histograms, then spectrum and example traces; on the same axes for every site."""
    everything = {
        (modality, quantity.name): np.concatenate([values for _, values in rows])
        for modality, quantity, rows in _distributions(groups)
    }
    whole = {quantity.name: quantity.whole for quantity in QUANTITIES}
    bins = {key: charts.bins(values, whole[key[1]]) for key, values in everything.items()}
    limits = {unit: _power_limits([g for g in groups if g.unit == unit]) for unit in _UNIT_NAMES}
    drawn: dict[str, list[list[Markup]]] = {}
    for group in sorted(groups, key=lambda g: g.site):
        histograms = [
            charts.histogram(
                group.values[quantity.name],
                everything[group.modality, quantity.name],
                *bins[group.modality, quantity.name],
                f"{MODALITY_NAMES[group.modality]}: {quantity.title[group.modality]}",
                group.site,
            )
            for quantity in QUANTITIES
            if quantity.name in group.values
        ]
        signals = _spectrum(group, limits[group.unit]) + [_traces(window) for window in group.examples]
        drawn.setdefault(group.site, []).extend([histograms, signals])
    return drawn


def _distributions(groups: Sequence[Group]) -> list[tuple[Modality, Quantity, list[tuple[str, np.ndarray]]]]:
    """Values per site of each modality and quantity that any recording has."""
    found = []
    for modality in ORDER:
        for quantity in QUANTITIES:
            of_modality = [g for g in groups if g.modality == modality and quantity.name in g.values]
            if of_modality:
                sites = Counter(g.site for g in of_modality)
                names = [g.site if sites[g.site] == 1 else f"{g.site}, {_UNIT_NAMES[g.unit]}" for g in of_modality]
                values = [g.values[quantity.name] for g in of_modality]
                found.append((modality, quantity, list(zip(names, values, strict=True))))
    return found


def _power_limits(groups: Sequence[Group]) -> tuple[float, float]:
    """Lowest and highest power of the axis: the medians of all sites, three decades below the highest at least."""
    power = [g.quartiles_3F[1] for g in groups if g.quartiles_3F is not None]
    finite = np.concatenate(power)[np.isfinite(np.concatenate(power))] if power else np.empty(0)
    positive = finite[finite > 0]
    if not len(positive):
        return 0.1, 10.0
    # A stop band goes down without end; it is not worth the axis.
    low, high = float(np.percentile(positive, 10)), float(positive.max())
    return max(low / 3, high / 1e5), high * 3


def _spectrum(group: Group, limits: tuple[float, float]) -> list[Markup]:
    if group.quartiles_3F is None:
        return []
    unit = _UNIT_NAMES[group.unit]
    frequencies = FREQUENCIES[group.modality]
    title = f"{MODALITY_NAMES[group.modality]}: power [{unit}²/Hz], {group.n_spectra} recordings"
    return [charts.spectrum(frequencies, group.quartiles_3F, group.modality == "eeg", limits, title, group.site)]


def _traces(window: Window) -> Markup:
    recording = window.recording
    # Evenly spread over the recording's.
    shown = np.linspace(0, recording.n_channels - 1, min(recording.n_channels, EXAMPLE_CHANNELS)).round().astype(int)
    x_TC = window.x_TC[:, shown] - np.median(window.x_TC[:, shown], axis=0)
    title = (
        f"{MODALITY_NAMES[recording.modality]}: from {window.start / recording.sfreq:.0f} s of {recording.subject[:6]}…"
    )
    return charts.traces(
        x_TC, len(x_TC) / recording.sfreq, [recording.channels[c] for c in shown],
        [recording.channel_good[c] for c in shown], _UNIT_NAMES[recording.unit], title,
    )  # fmt: skip


CARD_NAME = "README.md"
# Names of licences in datasets, in lower case with "-" between words -> of the Hub. Others count as terms of their own.
_LICENSES = {"cc0": "cc0-1.0", "cc0-1.0": "cc0-1.0", "pddl": "pddl", "pddl-1.0": "pddl"} | {
    name: name for name in ("cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0")
}
_SIZES = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M", 10_000_000: "1M<n<10M"}

_CARD = """\
{front}# {title}

{modalities} recordings of {subjects:,} subjects from {sites:,} sites, cleaned, in WebDataset shards: {samples:,}
samples, {recordings:,} recordings, {hours:.2f} hours. A sample holds all recordings of one session.

```python
from mcsp.data_sharding.store.reader import Corpus

corpus = Corpus("path/to/this/folder")
recording = corpus.recordings[0]
window = corpus.read_window(recording, 0, recording.n_samples)
```

`report.html` has distributions, spectra and examples of every site; `index.json` the settings that made it, and a
SHA-256 of every file. Index hash {index_hash}.

## Sites

{table}

Terms are what each dataset's `dataset_description.json` says under License. They hold for what was made of it.
{simulated}

## Splits

By subject, before anything else: nobody is in two.

{splits}

## Refused

{refused}

## Data protection

Names of subjects are keyed hashes, and the key is in no file here; there are no dates, names or texts of headers.
Recordings can still identify a person, as functional connectivity does: pass them on as the terms above allow.
"""


def dataset_card(
    index: Mapping[str, Any], holds: Mapping[tuple[str, str], Sequence[str]], sources: Mapping[str, Mapping[str, Any]]
) -> str:
    """The text, of the index alone: nothing in it names a file, a person or a path of the machine.

    Args:
        index: content of index.json.
        holds: what a site has of a modality, in words.
        sources: what each site's description says of its origin.
    """
    totals = index["totals"]
    sites = {name: site for name, site in totals["sites"].items() if site["recordings"]}
    modalities = [m for m, counts in totals["modalities"].items() if counts["recordings"]]
    simulated = [name for name in sites if sites[name]["simulated"]]
    held = {
        name: "; ".join(f"{m}: {markdown(text)}" for m in modalities for text in holds.get((name, m), ()))
        for name in sites
    }
    rows = [
        f"| {markdown(name)} | {'simulated' if site['simulated'] else 'recorded'} | {site['subjects']:,} "
        f"| {site['samples']:,} | {site['hours']:.2f} | {held[name]} "
        f"| {terms_of(sources.get(name, {}))} | {site['rejected']:,} |"
        for name, site in sites.items()
    ]
    head = "| site | kind | subjects | samples | hours | holds | terms | refused |\n|---|---|---|---|---|---|---|---|\n"
    recorded = [sources.get(name, {}).get("License", "") for name in sites if name not in simulated]
    return _CARD.format(
        front=_front_matter(totals["all"]["samples"], modalities, recorded),
        title="MCSP corpus",
        modalities=" and ".join({"eeg": "EEG", "fmri": "fMRI"}[m] for m in modalities) or "No",
        sites=len(sites),
        **{name: totals["all"][name] for name in ("subjects", "samples", "recordings", "hours")},
        index_hash=index["index_hash"],
        table=head + "\n".join(rows),
        simulated=f"Simulated, and so no evidence of brains: {markdown(', '.join(simulated))}." if simulated else "",
        splits=_counts("split", totals["splits"]),
        refused=_refused(index["reasons"], totals["all"]),
    )


def _front_matter(n_samples: int, modalities: Sequence[str], stated: Sequence[str]) -> str:
    """The lines between ``---``: see https://huggingface.co/docs/hub/datasets-cards."""
    licenses = {_LICENSES.get(re.sub(r"[\s_-]+", "-", text.strip().lower()), "") for text in stated}
    known: dict[str, Any] = {"license": licenses.pop() if len(licenses) == 1 and "" not in licenses else "other"}
    if known["license"] == "other":
        known |= {"license_name": "terms-of-the-datasets", "license_link": CARD_NAME}
    known |= {
        "pretty_name": "MCSP corpus",
        "size_categories": [next((name for most, name in _SIZES.items() if n_samples < most), "10M<n<100M")],
        "task_categories": ["feature-extraction"],
        "tags": [*modalities, "webdataset", "bids", "timeseries"],
        "viewer": False,  # the Hub's own shows no time series
    }
    return f"---\n{yaml.safe_dump(known, sort_keys=False)}---\n"


def _counts(what: str, totals: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        f"| {name} | {of['subjects']:,} | {of['samples']:,} | {of['recordings']:,} | {of['hours']:.2f} |"
        for name, of in totals.items()
    ]
    return f"| {what} | subjects | samples | recordings | hours |\n|---|---|---|---|---|\n" + "\n".join(rows)


def _refused(reasons: Mapping[str, int], totals: Mapping[str, int]) -> str:
    if not reasons:
        return f"Nothing of {totals['found']:,} recordings that were found."
    rows = [f"| {name} | {count:,} | {markdown(REASONS[name].meaning)} |" for name, count in reasons.items()]
    told = f"{totals['rejected']:,} of {totals['found']:,} recordings that were found."
    return f"{told}\n\n| reason | recordings | meaning |\n|---|---|---|\n" + "\n".join(rows)
