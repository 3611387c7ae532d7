"""What a corpus holds and lost: text for a terminal, and ``report.html``, one file that needs nothing else."""

import html
import json
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np

from mcsp.data_sharding.bids.reasons import REASONS
from mcsp.data_sharding.inspect import charts
from mcsp.data_sharding.inspect.charts import STYLE
from mcsp.data_sharding.inspect.survey import FREQUENCIES, QUANTITIES, Group, Quantity, example_channels, survey
from mcsp.data_sharding.store.files import Location, write_atomic
from mcsp.data_sharding.store.index import Rejection, read_rejected
from mcsp.data_sharding.store.reader import Corpus
from mcsp.schema import MODALITIES, SCALE_FREE, Modality, Window
from mcsp.wording import listed

REPORT_NAME = "report.html"

_EXAMPLES_PER_REASON = 3
# From these on a site is listed under "Worth a look"; ours, but for the displacement, a limit in common use
# (Power et al. 2014, NeuroImage 84).
_LOOK_REJECTED, _LOOK_AMPLITUDE, _LOOK_FD_MM = 0.05, 4.0, 0.5

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Corpus report</title><style>
:root {{ color-scheme: light; }}
body {{ font: 16px/1.5 system-ui, sans-serif; color: #1c1c1c; background: #fff; max-width: 74rem; margin: 1.5rem auto;
  padding: 0 1rem; }}
h1 {{ font-size: 1.6rem; margin: 0 0 .3rem; }} h2 {{ font-size: 1.25rem; margin: 2.4rem 0 .4rem; }}
h3 {{ font-size: 1.05rem; margin: 1.8rem 0 .2rem; padding-top: .8rem; border-top: 1px solid #d5d5d5; }}
p {{ margin: .3rem 0 .7rem; max-width: 48rem; }} a {{ color: #1f5a9e; }}
.wide {{ overflow-x: auto; }} table {{ border-collapse: collapse; font-size: .92rem; min-width: 100%;
  font-variant-numeric: tabular-nums; }}
th, td {{ text-align: left; padding: .3rem .7rem .3rem 0; border-bottom: 1px solid #e3e3e3; vertical-align: top; }}
th {{ font-weight: 600; border-bottom: 2px solid #bbb; }} .n {{ text-align: right; white-space: nowrap; }}
.nowrap {{ white-space: nowrap; }} tr.sum td {{ font-weight: 600; border-top: 2px solid #bbb; }}
code, pre {{ font: .86em ui-monospace, monospace; overflow-wrap: anywhere; }}
pre {{ background: #f5f5f5; padding: .7rem; overflow-x: auto; }}
td.holds {{ min-width: 11rem; }}
.charts {{ display: grid; gap: 1rem 1.4rem; align-items: start; margin-bottom: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 17rem), 1fr)); }}
.mark {{ background: #fff0c2; border-radius: .3rem; padding: 0 .4rem; font-size: .8rem; white-space: nowrap; }}
.look {{ border-left: 4px solid #e0a800; padding: .1rem 0 .1rem 1.8rem; }}
small, .small {{ color: #555; font-size: .87rem; }}
{style}</style></head><body>
{body}
</body></html>
"""


def index_table(index: dict[str, Any]) -> str:
    """Found, stored and rejected recordings and hours per site, and how often each reason occurred."""
    header = ("site", "found", "stored", "rejected", "subjects", "hours")
    rows: list[tuple[str, ...]] = [header]
    for site, counts in [*index["totals"]["sites"].items(), ("all", index["totals"]["all"])]:
        name = f"{site} (simulated)" if counts.get("simulated") else site
        values = (counts["found"], counts["recordings"], counts["rejected"], counts["subjects"])
        rows.append((name, *map(str, values), f"{counts['hours']:.2f}"))
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
    for reason, n in index["reasons"].items():
        lines += [f"rejected {n} x {reason}: {REASONS[reason].meaning}", f"  what to do: {REASONS[reason].remedy}"]
    return "\n".join(lines)


def write_report(path: Location) -> Location:
    """Write ``report.html`` into the finished corpus in ``path``, which may be remote; return the file.

    Raises:
        ValueError: there is no finished corpus.
        OSError: the folder cannot be written.
    """
    corpus = Corpus(str(path))
    file = path / REPORT_NAME
    write_atomic(file, make_page(corpus.index, survey(corpus, path), read_rejected(path)).encode())
    corpus.close()
    return file


def make_page(index: dict[str, Any], groups: Sequence[Group], rejected: Iterable[Rejection]) -> str:
    """The page for the index of a corpus and its survey: the same text every time, under 5 MB at 50 sites."""
    sections = [
        _summary(index, groups),
        _sites(index, groups),
        _reasons(index, rejected),
        side_by_side(groups),
        site_charts(groups, [name for name, site in index["totals"]["sites"].items() if site["simulated"]]),
        _provenance(index),
    ]
    return _PAGE.format(style=STYLE, body="\n".join(filter(None, sections)))


def _summary(index: dict[str, Any], groups: Sequence[Group]) -> str:
    everything, sites = index["totals"]["all"], index["totals"]["sites"]
    simulated = [name for name, site in sites.items() if site["simulated"]]
    parts = [
        "<h1>Corpus report</h1>",
        f"<p>{_count(len(sites), 'site')}, {_count(everything['subjects'], 'subject')}, "
        f"{_count(everything['recordings'], 'recording')}, {everything['hours']:,.1f} hours. Of "
        f"{everything['found']:,} recordings found, {everything['recordings']:,} are stored and "
        f"{everything['rejected']:,} quarantined.</p>",
    ]
    if simulated:
        parts.append(
            f"<p><span class=mark>simulated</span> {html.escape(', '.join(simulated))}: made by a generator.</p>"
        )
    look = _worth_a_look(index, groups)
    if look:
        items = "".join(f"<li>{html.escape(line)}</li>" for line in look)
        parts.append(f"<h2>Worth a look</h2><ul class=look>{items}</ul>")
    return "\n".join(parts)


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


def _sites(index: dict[str, Any], groups: Sequence[Group]) -> str:
    by_site: dict[tuple[str, Modality], list[Group]] = {}
    for group in groups:
        by_site.setdefault((group.site, group.modality), []).append(group)
    rows = []
    for name, counts in index["totals"]["sites"].items():
        mark = " <span class=mark>simulated</span>" if counts["simulated"] else ""
        stored = any((name, m) in by_site for m in ORDER)
        link = f'<a href="#{anchor(name)}">{html.escape(name)}</a>' if stored else html.escape(name)
        cells = [f"<td class=holds>{'<br>'.join(map(_holds, by_site.get((name, m), [])))}</td>" for m in ORDER]
        rows.append(f"<tr><td class=nowrap>{link}{mark}</td>{_counts(counts)}{''.join(cells)}</tr>")
    blank = "<td></td>" * len(ORDER)
    rows.append(f"<tr class=sum><td>all</td>{_counts(index['totals']['all'])}{blank}</tr>")
    heads = ("Found", "Stored", "Quarantined", "Subjects", "Hours")
    head = "<th>Site</th>" + "".join(f"<th class=n>{h}</th>" for h in heads)
    head += "".join(f"<th>{MODALITY_NAMES[m]}</th>" for m in ORDER)
    splits = "; ".join(
        f"{split} {_count(counts['subjects'], 'subject')}, {counts['hours']:,.1f} h"
        for split, counts in index["totals"]["splits"].items()
    )
    return (
        f'<h2 id="sites">Sites</h2><div class=wide><table><tr>{head}</tr>{"".join(rows)}</table></div>'
        f"<p class=small>Splits by subject: {splits}. Rates, channels and units are those of what is stored; a.u.: "
        "series without their mean, whose amplitude says nothing.</p>"
    )


def _counts(counts: dict[str, Any]) -> str:
    share = f" ({100 * counts['rejected'] / counts['found']:.0f} %)" if counts["rejected"] else ""
    values = [f"{counts['found']:,}", f"{counts['recordings']:,}", f"{counts['rejected']:,}{share}"]
    values += [f"{counts['subjects']:,}", _hours(counts["hours"])]
    return "".join(f"<td class=n>{value}</td>" for value in values)


def _holds(group: Group) -> str:
    counts = sorted(group.channels)
    channels = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    noun = "parcels" if group.modality == "fmri" else "channels"
    unit = _UNIT_NAMES[group.unit]
    return f"{_count(len(group.rows), 'recording')}, {_rates(group)}, {channels} {noun}, in {unit}"


def _rates(group: Group) -> str:
    """Sampling rates as the modality's people say them; the common ones first."""

    def text(sfreq: float) -> str:
        return f"t_r {1 / sfreq:.4g} s" if group.modality == "fmri" else f"{sfreq:.4g} Hz"

    counts: Counter[str] = Counter()
    for sfreq, n in group.sfreq.items():
        counts[text(sfreq)] += n
    if len(counts) == 1:
        return next(iter(counts))
    return listed((f"{name} ({n})" for name, n in counts.most_common()), 3)


def _reasons(index: dict[str, Any], rejected: Iterable[Rejection]) -> str:
    if not index["reasons"]:
        return "<h2>Quarantined</h2><p>Nothing: every recording that was found is stored.</p>"
    sites: dict[str, Counter[str]] = {}
    examples: dict[str, list[Rejection]] = {}
    for row in rejected:
        sites.setdefault(row.reason, Counter())[row.site] += 1
        shown = examples.setdefault(row.reason, [])
        if len(shown) < _EXAMPLES_PER_REASON:
            shown.append(row)
    rows = []
    for reason, n in sorted(index["reasons"].items(), key=lambda item: (-item[1], item[0])):
        where = listed((f"{html.escape(site)} {m:,}" for site, m in sites[reason].most_common()), 5)
        files = "<br>".join(
            f"<code>{html.escape(row.site)}/{html.escape(row.file)}</code> {html.escape(row.detail)}"
            for row in examples[reason]
        )
        rows.append(
            f"<tr><td><b>{html.escape(reason)}</b><br><small>{html.escape(REASONS[reason].meaning)}<br>What to do: "
            f"{html.escape(REASONS[reason].remedy)}</small></td>"
            f"<td class=n>{n:,}</td><td>{where}</td><td><small>{files}</small></td></tr>"
        )
    head = "<th>Reason</th><th class=n>Recordings</th><th>Sites</th><th>Examples</th>"
    return f"<h2>Quarantined</h2><div class=wide><table><tr>{head}</tr>{''.join(rows)}</table></div>"


def _provenance(index: dict[str, Any]) -> str:
    software = ", ".join(f"{name} {version}" for name, version in sorted(index["software"].items()))
    config = json.dumps(index["config"], indent=1, sort_keys=True)
    return (
        f"<h2>How it was made</h2><p>Schema version {index['schema_version']}, index hash "
        f"<code>{index['index_hash']}</code>. {html.escape(software)}.</p>"
        f"<details><summary>Configuration</summary><pre>{html.escape(config)}</pre></details>"
    )


def _hours(hours: float) -> str:
    return f"{hours:,.1f}" if hours >= 10 else f"{hours:.2f}"


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


MODALITY_NAMES: dict[Modality, str] = {"eeg": "EEG", "fmri": "fMRI"}
ORDER: tuple[Modality, ...] = tuple(sorted(MODALITIES))  # in tables and on the page
_UNIT_NAMES = {"uV": "µV", "percent": "%", SCALE_FREE: SCALE_FREE}


def anchor(site: str) -> str:
    """Name of the place on the page that shows a site."""
    return f"site-{site}"


def side_by_side(groups: Sequence[Group]) -> str:
    """One chart per modality and quantity, with a row per site."""
    drawn = []
    for modality, quantity, rows in _distributions(groups):
        edges, log = charts.bins(np.concatenate([values for _, values in rows]), quantity.whole)
        low = float(edges[0] if log else max(edges[0], 0.0))
        title = f"{MODALITY_NAMES[modality]}: {quantity.title[modality]}"
        drawn.append(charts.ranges(rows, (low, float(edges[-1])), log, title))
    return (
        "<h2>Sites side by side</h2><p>The dot is the median over recordings, the box holds the middle half, the line "
        f"goes from 5 to 95&nbsp;%.</p><div class=charts>{''.join(drawn)}</div>"
    )


def site_charts(groups: Sequence[Group], simulated: Collection[str]) -> str:
    """Histograms, median spectrum and example traces of each site and modality, on the same axes for every site."""
    bins = {}
    everything = {}
    for modality, quantity, rows in _distributions(groups):
        everything[modality, quantity.name] = np.concatenate([values for _, values in rows])
        bins[modality, quantity.name] = charts.bins(everything[modality, quantity.name], quantity.whole)
    limits = {unit: _power_limits([g for g in groups if g.unit == unit]) for unit in _UNIT_NAMES}
    parts = [
        "<h2>Site by site</h2><p>Bars are the recordings of the site, the dashed outline those of all sites; the axes "
        "are the same for every site, and what lies beyond is in the outermost bars. A spectrum is the median over "
        "recordings, the band holds the middle half of them. Red traces are channels marked bad.</p>"
    ]
    for site in sorted({g.site for g in groups}):
        mark = " <span class=mark>simulated</span>" if site in simulated else ""
        name = html.escape(site)
        parts.append(f'<h3 id="{html.escape(anchor(site))}">{name}{mark} <small><a href="#sites">up</a></small></h3>')
        for group in (g for g in groups if g.site == site):
            drawn = [
                charts.histogram(
                    group.values[quantity.name],
                    everything[group.modality, quantity.name],
                    *bins[group.modality, quantity.name],
                    f"{MODALITY_NAMES[group.modality]}: {quantity.title[group.modality]}",
                    site,
                )
                for quantity in QUANTITIES
                if quantity.name in group.values
            ]
            signals = _spectrum(group, limits[group.unit]) + [_traces(window) for window in group.examples]
            parts += [f"<div class=charts>{''.join(row)}</div>" for row in (drawn, signals)]
    return "\n".join(parts)


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


def _spectrum(group: Group, limits: tuple[float, float]) -> list[str]:
    if group.quartiles_3F is None:
        return []
    unit = _UNIT_NAMES[group.unit]
    frequencies = FREQUENCIES[group.modality]
    title = f"{MODALITY_NAMES[group.modality]}: power [{unit}²/Hz], {group.n_spectra} recordings"
    return [charts.spectrum(frequencies, group.quartiles_3F, group.modality == "eeg", limits, title, group.site)]


def _traces(window: Window) -> str:
    recording = window.recording
    shown = example_channels(recording)
    x_TC = window.x_TC[:, shown] - np.median(window.x_TC[:, shown], axis=0)
    title = (
        f"{MODALITY_NAMES[recording.modality]}: from {window.start / recording.sfreq:.0f} s of {recording.subject[:6]}…"
    )
    return charts.traces(
        x_TC,
        len(x_TC) / recording.sfreq,
        [recording.channels[c] for c in shown],
        [recording.channel_good[c] for c in shown],
        _UNIT_NAMES[recording.unit],
        title,
    )
