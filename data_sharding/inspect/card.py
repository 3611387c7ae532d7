"""``README.md`` of a corpus: a dataset card that begins with what the Hugging Face Hub reads."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from mcsp.data_sharding.bids.description import terms_of
from mcsp.data_sharding.bids.reasons import REASONS
from mcsp.wording import markdown

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
    rows = [
        f"| {markdown(name)} | {'simulated' if site['simulated'] else 'recorded'} | {site['subjects']:,} "
        f"| {site['samples']:,} | {site['hours']:.2f} | {'; '.join(_held(name, modalities, holds))} "
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


def _held(site: str, modalities: Sequence[str], holds: Mapping[tuple[str, str], Sequence[str]]) -> list[str]:
    return [f"{m}: {markdown(text)}" for m in modalities for text in holds.get((site, m), ())]


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
