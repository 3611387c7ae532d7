"""The model card of an export, filled from the run and the corpus."""

import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from mcsp.data_sharding.description import DESCRIPTION_NAME
from mcsp.data_sharding.reader import Corpus
from mcsp.model.mcsp import MCSP

_CARD = """\
---
license: other
library_name: mcsp
tags: [fmri, eeg, self-supervised]
---
# MCSP, size {size}

{parameters:,} parameters for {modalities}, domains {domains}. Pretrained without labels for {step:,} steps; the method
follows the abstract of *Multi-modal Cross-domain Self-supervised Pre-training for fMRI and EEG Fusion*
(arXiv 2409.19130). Architecture sizes, augmentations and weights of the loss terms are choices of this project, not of
that paper.

## Use

```python
import mcsp

model = mcsp.from_pretrained("{folder}")
model.preprocessing  # units, filters, rates, window lengths: bring your recordings into this form first
```
Needs torch, numpy, einops, safetensors, pyyaml and pydantic. `sha256sum -c SHA256SUMS` checks the files.
{programs}
## Pretraining data

Only the training split was used: {subjects} subjects, listed as keyed hashes in `pretraining_subjects.txt`. Do not test
on them. {simulated_note}

| site | kind | subjects | samples | recordings | EEG hours | fMRI hours | terms |
|---|---|---|---|---|---|---|---|
{sites}

Terms are what the site's `dataset_description.json` says under License; they apply to the recordings and may apply to
weights trained on them. Corpus index hash `{index_hash}`.

## Training

{steps_line}

{cost}

{curves}| quantity at the last logged step | value |
|---|---|
{metrics}

## Results

{results}

## Intended use and limits

* For research: frozen features for small classifiers, or a start for fine-tuning. Not a medical device; no output of it
  may guide the care of a person.
* It knows what it was trained on: {hours:.1f} hours of recordings. Other scanners, montages, parcellations, ages or
  conditions may fall outside.
* Features can carry the site and scanner. Compare groups only where both come from the same sites.
* Recordings have to be prepared as `preprocessing.json` says: microvolts and percent signal change, never volts or raw
  BOLD.
* The recordings' own terms apply to what was learned from them; see the data terms of each site.
"""


def model_card(
    model: MCSP,
    manifest: Mapping[str, Any],
    metrics: Sequence[Mapping[str, float]],
    corpus: Corpus,
    n_subjects: int,
    evaluation: Mapping[str, Any] | None = None,
    curves: str | None = None,
    programs: Mapping[str, Any] | None = None,
) -> str:
    """Markdown text; simulated sites are called so, and nothing in it names a path of the machine.

    Args:
        model: the one that is exported.
        manifest: of its checkpoint.
        metrics: lines of metrics.jsonl up to that step.
        corpus: of the run.
        n_subjects: in the training split.
        evaluation: content of evaluate's results.json; None where there is none yet.
        curves: file name of a picture of the loss beside the card; None for none.
        programs: content of programs.json, where programs were written.
    """
    terms = terms_of_sites(corpus)
    used = [r for r in corpus.recordings if r.split == "train" and r.modality in model.config.modalities]
    simulated = sorted({r.site for r in used if r.simulated})
    hours = {True: 0.0, False: 0.0}
    for r in used:
        hours[r.simulated] += r.seconds / 3600
    rows = []
    for site in sorted({r.site for r in used}):
        of_site = [r for r in used if r.site == site]
        seconds = {m: sum(r.seconds for r in of_site if r.modality == m) for m in ("eeg", "fmri")}
        rows.append(
            f"| {site} | {'simulated' if site in simulated else 'recorded'} | {len({r.subject for r in of_site})} "
            f"| {len({r.key for r in of_site})} | {len(of_site)} "
            f"| {seconds['eeg'] / 3600:.2f} | {seconds['fmri'] / 3600:.2f} | {terms.get(site, 'not stated')} |"
        )
    note = (
        f"**Simulated sites: {', '.join(simulated)} ({hours[True]:.2f} of {hours[True] + hours[False]:.2f} hours).** "
        "What was learned from them says nothing about brains."
        if simulated
        else "No simulated recordings."
    )
    run = manifest["config"]
    batch = ", ".join(f"{n} {name}" for name, n in run["batch"].items())
    windows = ", ".join(f"{run['window_seconds'][m]:g} s of {m}" for m in model.config.modalities)
    last: Mapping[str, float] = metrics[-1] if metrics else {}
    shown = ["loss"] * ("loss" in last) + sorted(k for k in last if k.startswith(("loss/", "top1/")))
    return _CARD.format(
        size=model.config.size,
        parameters=sum(p.numel() for p in model.parameters()),
        modalities=" and ".join(model.config.modalities),
        domains=", ".join(model.config.domains),
        step=manifest["step"],
        folder="path/to/this/folder",
        subjects=n_subjects,
        simulated_note=note,
        sites="\n".join(rows),
        index_hash=corpus.index_hash,
        steps_line=f"{manifest['step']:,} steps of {batch} samples per batch; windows of {windows}; "
        f"seed {run['seed']}; peak learning rate {run['learning_rate']:g}; ZeRO stage {manifest['zero_stage']}.",
        metrics="\n".join(f"| {name} | {last[name]:.4g} |" for name in shown) or "| (nothing was logged) | |",
        hours=hours[True] + hours[False],
        cost=training_cost(manifest, metrics),
        curves=f"![loss by step]({curves})\n\n" if curves else "",
        results=_results(evaluation, corpus),
        programs="".join(_program_line(program) for program in (programs or {}).values()),
    )


def terms_of_sites(corpus: Corpus) -> dict[str, str]:
    """The licence that each site states; sites that state none are left out."""
    path = corpus.path / DESCRIPTION_NAME
    sources = json.loads(path.read_text())["SourceDatasets"] if path.is_file() else []
    return {s["Site"]: s["License"].replace("|", "/") for s in sources if s.get("License")}


def training_cost(manifest: Mapping[str, Any], metrics: Sequence[Mapping[str, float]]) -> str:
    """A sentence on ranks, hours, operations and memory, of what was logged."""
    ranks, hours = manifest.get("world_size", 1), manifest.get("useful_seconds", 0.0) / 3600
    parts = [f"{ranks} {'rank' if ranks == 1 else 'ranks'} for {hours:.2f} hours ({ranks * hours:.2f} rank-hours)"]
    speeds = [line["tflops"] for line in metrics if line.get("tflops")]
    if speeds:
        operations = statistics.fmean(speeds) * ranks * hours * 3600 / 1e3
        parts.append(f"about {operations:.3g} PFLOP")
    memory = [line["memory_gib"] for line in metrics if line.get("memory_gib")]
    if memory:
        parts.append(f"at most {max(memory):.1f} GiB of memory per rank")
    return f"Cost: {', '.join(parts)}. Steps that were lost to a crash are not in it."


def _program_line(program: Mapping[str, Any]) -> str:
    files = " and ".join(f"`{name}`" for name in program["files"])
    return (
        f"\n{files}: {program['modality']} at {program['sfreq_hz']:g} Hz, windows of exactly "
        f"{program['window_seconds']:g} s, at most {program['channels_at_most']} channels, any number of windows at "
        "once; anything else is refused. `programs.json` has names, shapes and units of what goes in.\n"
    )


def _results(evaluation: Mapping[str, Any] | None, corpus: Corpus) -> str:
    if evaluation is None:
        return "No evaluation came with this export."
    sites = evaluation["sites"]
    names = ", ".join(f"{s} (simulated)" if v["simulated"] else s for s, v in sites.items())
    own = "the corpus of the pretraining" if evaluation["corpus_index_hash"] == corpus.index_hash else "another corpus"
    seen = evaluation["subjects_seen_in_pretraining"]
    rows = [
        f"| {r['recordings']} | {r['protocol']} | {r['features']}, {r['classifier']} | {r['auroc']['value']:.3f} "
        f"({r['auroc']['ci_low']:.3f} to {r['auroc']['ci_high']:.3f}) |"
        for r in evaluation["classification"]
        if not r["transductive"] and r["auroc"] is not None
    ]
    head = "| recordings | tested on | method | AUROC (95 % interval over subjects) |\n|---|---|---|---|\n"
    return (
        f"`{evaluation['label']['name']}` ({' against '.join(evaluation['label']['classes'])}) of "
        f"{evaluation['subjects']} subjects of {own}, {'unknown how many' if seen is None else seen} of them seen in "
        f"pretraining; sites: {names}.\n\n{head}" + "\n".join(rows)
    )
