"""The model card of an export, filled from the run and the corpus."""

from collections.abc import Mapping
from typing import Any

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

## Pretraining data

Only the training split was used: {subjects} subjects, listed as keyed hashes in `pretraining_subjects.txt`. Do not test
on them. {simulated_note}

| site | kind | subjects | samples | recordings | EEG hours | fMRI hours |
|---|---|---|---|---|---|---|
{sites}

Corpus index hash `{index_hash}`.

## Training

{steps_line}

| quantity at the last logged step | value |
|---|---|
{metrics}

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
    model: MCSP, manifest: Mapping[str, Any], metrics: Mapping[str, float], corpus: Corpus, n_subjects: int
) -> str:
    """Markdown text; simulated sites are called so, and nothing in it names a path of the machine."""
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
            f"| {seconds['eeg'] / 3600:.2f} | {seconds['fmri'] / 3600:.2f} |"
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
    shown = ["loss"] * ("loss" in metrics) + sorted(k for k in metrics if "/" in k)
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
        metrics="\n".join(f"| {name} | {metrics[name]:.4g} |" for name in shown) or "| (nothing was logged) | |",
        hours=hours[True] + hours[False],
    )
