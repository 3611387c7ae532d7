"""The model card of an export, filled from the run and the corpus."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from mcsp.data_sharding.bids.tables import read_sources, terms_of
from mcsp.data_sharding.store.reader import Corpus
from mcsp.encode.parcellations import parcellation_name
from mcsp.export.hub import front_matter
from mcsp.model.mcsp import MCSP
from mcsp.schema import Modality, Recording
from mcsp.version import __version__
from mcsp.wording import markdown

_CARD = """\
{front}# MCSP, size {size}

An encoder of {modalities} recordings, pretrained without labels: a recording goes in, features come out, and a small
classifier can be trained on them with few labelled subjects. {parameters:,} parameters; domains {domains}.
Pretrained for {step:,} steps on {hours:.1f} hours of recordings. The method follows the abstract of *Multi-modal
Cross-domain Self-supervised Pre-training for fMRI and EEG Fusion* (arXiv 2409.19130; Neural Networks 184, 2025,
107066). Sizes, augmentations and weights of the loss terms are choices of this project, not of that paper.

* **Contact:** {contact}
* **Terms of use of the weights:** {terms}

## Use

```python
import mcsp

model = mcsp.from_pretrained("path/to/this/folder")
{use}
```
Loading needs torch, numpy, einops, safetensors, pyyaml and pydantic; reading recordings needs the extra `lab`.
Everything runs on your own machine, without a GPU, and nothing is sent anywhere. `sha256sum -c SHA256SUMS` checks the
files. `docs/downstream.md` of the code walks from a BIDS folder to a report.
{programs}
### What a recording goes through

`encode_raw` and `encode_bold` do this by themselves and report it; `preprocessing.json` has every constant.

{preparation}

### What the features are

{features}

## Pretraining data

Only the training split was used: {subjects} subjects. {simulated_note}

{sites}

Terms are what the site's `dataset_description.json` says under License; they apply to the recordings and may apply to
weights trained on them. Corpus index hash {index_hash}.

### Were my subjects among them?

Do not test on subjects of the pretraining: scores would be too good. If you use a public dataset, look for it in the
table above. If your site contributed recordings, `launchers/evaluate.py` compares hashes with
`pretraining_subjects.txt`, provided that your corpus was built with the same `MCSP_SUBJECT_KEY` (fingerprint of the
key: `{key_fingerprint}`). Under another key no hash can match, and it says that nothing was checked; then ask the
contact above.

## Training

{steps_line}

{cost}

{curves}{metrics}

`docs/method.md` of the code explains the terms of the loss; `top1` is how often the right partner is the nearest of all
in the batch.

## Results

{results}

## Data protection

* **In this folder:** weights, constants, names of sites, sums per site, and keyed hashes of the pretraining subjects.
  **Not in it:** recordings, names of people, dates, ages, diagnoses, texts of headers, or paths of a machine.
* The hashes are pseudonyms: with the key one can find out whether a known person of a site was in the data; without
  it they say nothing. The key is in no file here.
* The weights are computed from recordings of people. How much of a single recording could be recovered from them was
  not examined. {membership} Pass them on as the terms above allow.
* Features of your own subjects can identify a person, as functional connectivity does: keep them like the recordings.

## Intended use and limits

* For research: frozen features for small classifiers, or a start for fine-tuning. Not a medical device; no output of it
  may guide the care of a person.
* It knows what it was trained on. Other scanners, montages, parcellations, ages or conditions may fall outside, and
  ages and diagnoses of the pretraining subjects are not listed here.
* Features can carry the site and scanner. Compare groups only where both come from the same sites, and test on a site
  that was left out.
* A number says nothing without what connectivity, band power and the same model without pretraining score in the same
  folds: `launchers/evaluate.py` puts them side by side.
* Recordings have to be prepared as said above: microvolts and percent signal change, never volts or raw BOLD.

## Citing

The paper above for the method; this model by the corpus index hash, the step, and the version of the code
(mcsp {version}).
"""


def model_card(
    model: MCSP,
    manifest: Mapping[str, Any],
    metrics: Sequence[Mapping[str, float]],
    corpus: Corpus,
    preprocessing: Mapping[str, Any],
    n_subjects: int,
    evaluation: Mapping[str, Any] | None = None,
    curves: str | None = None,
    programs: Mapping[str, Any] | None = None,
    contact: str | None = None,
    terms: str | None = None,
    weights_sha256: str | None = None,
) -> str:
    """Markdown text; simulated sites are called so, and nothing in it names a path of the machine.

    Args are those of :func:`mcsp.export.export.write_export`, and what it has written beside the card: the content of
    preprocessing.json, the number of subjects in the training split, the file of the curves, the content of
    programs.json, and the SHA-256 of model.safetensors, as ``evaluation`` may be of other weights.
    """
    others = ((evaluation or {}).get("model") or {}).get("weights_sha256") not in (None, weights_sha256)
    own = None if others else evaluation
    used = [r for r in corpus.recordings if r.split == "train" and r.modality in model.config.modalities]
    return _CARD.format(
        front=front_matter(model.config.size, model.config.modalities, own),
        version=__version__,
        size=model.config.size,
        parameters=sum(p.numel() for p in model.parameters()),
        modalities=" and ".join(model.config.modalities),
        domains=", ".join(model.config.domains),
        step=manifest["step"],
        hours=sum(r.seconds for r in used) / 3600,
        contact=markdown(contact or "") or "not given. Ask the person who gave you this folder.",
        terms=markdown(terms or "") or _NO_TERMS,
        use="\n".join(_USE[m] for m in model.config.modalities),
        programs="".join(_program_line(program) for program in (programs or {}).values()),
        preparation="\n".join(_PREPARED[m](preprocessing) for m in model.config.modalities),
        features="\n".join(_feature_line(model, m) for m in model.config.modalities),
        subjects=n_subjects,
        simulated_note=_simulated_note(used),
        sites=site_table(used, corpus),
        index_hash=markdown(corpus.index_hash),
        key_fingerprint=(preprocessing.get("subject_key_fingerprint") or "unknown")[:12],
        steps_line=_steps_line(manifest, model.config.modalities),
        cost=cost_line(manifest, metrics),
        curves=f"![loss by step]({curves})\n\n" if curves else "",
        metrics=curve_rows(metrics),
        membership=membership_text(own),
        results=f"{_OTHER_WEIGHTS if others else ''}{results_text(evaluation, corpus)}",
    )


_NO_TERMS = "not given. They do not follow from the licence of the code; ask before you use or pass them on."
_OTHER_WEIGHTS = "**These are results of other weights**, not of those in this folder.\n\n"
_PRINT = "print(encoded.report, encoded.features.shape)  # read its warnings first"
_USE: dict[Modality, str] = {
    "eeg": f"""\
# EDF, BDF, BrainVision, EEGLAB or FIF, or a continuous MNE Raw
encoded = model.encode_raw("sub-01_task-rest_eeg.edf")
{_PRINT}""",
    "fmri": f"""\
# in MNI space; or the array of a nilearn masker with t_r
atlas = "tpl-MNI152NLin6Asym_dseg.nii.gz"
encoded = model.encode_bold("sub-01_task-rest_space-MNI152NLin6Asym_bold.nii.gz", parcellation=atlas)
{_PRINT}""",
}


def _eeg_prepared(preprocessing: Mapping[str, Any]) -> str:
    clean = preprocessing["cleaning"]["eeg"]
    return (
        f"* **EEG**, any montage with known positions, in microvolts: bad channels out, notch at the power line, "
        f"{clean['highpass_hz']:g} to {clean['lowpass_hz']:g} Hz, {clean['sfreq']:g} Hz, average reference; at least "
        f"{preprocessing['min_seconds']['eeg']:g} s; windows of {preprocessing['window_seconds']['eeg']:g} s."
    )


def _fmri_prepared(preprocessing: Mapping[str, Any]) -> str:
    clean, kinds = preprocessing["cleaning"]["fmri"], preprocessing["parcellations"]
    band = "no band-pass" if clean["bandpass_hz"] is None else "{:g} to {:g} Hz".format(*clean["bandpass_hz"])
    names = (f"{markdown(parcellation_name(kind))}, sha256 {kind['sha256'][:12]}" for kind in kinds)
    seen = "; ".join(names) or "none"
    return (
        f"* **BOLD**, means of parcels in percent signal change: {'detrended, ' if clean['detrend'] else ''}{band}, "
        f"confounds regressed out: {markdown(', '.join(clean['confounds'] or [])) or 'none'}; at least "
        f"{preprocessing['min_seconds']['fmri']:g} s; windows of {preprocessing['window_seconds']['fmri']:g} s. "
        f"Parcellations seen in pretraining: {seen}. Any other in MNI space will do, with a warning."
    )


_PREPARED = {"eeg": _eeg_prepared, "fmri": _fmri_prepared}


def _feature_line(model: MCSP, modality: Modality) -> str:
    parts, learned = model.feature_widths(modality), model.learned_widths(modality)
    measured = {name: width for name, width in parts.items() if name not in learned}
    listed = [", ".join(f"{name} {width}" for name, width in of.items()) for of in (learned, measured)]
    return (
        f"* **{modality}**, {sum(parts.values()):,} numbers: learned ({listed[0]}; _z is what the training compared), "
        f"and measured in the same recording ({listed[1] or 'none'})."
    )


def _simulated_note(used: Sequence[Recording]) -> str:
    simulated = [r for r in used if r.simulated]
    if not simulated:
        return "No simulated recordings."
    hours, total = (sum(r.seconds for r in of) / 3600 for of in (simulated, used))
    return (
        f"**Simulated sites: {markdown(', '.join(sorted({r.site for r in simulated})))} ({hours:.2f} of {total:.2f} "
        "hours).** What was learned from them says nothing about brains."
    )


def _steps_line(manifest: Mapping[str, Any], modalities: Sequence[Modality]) -> str:
    run = manifest["config"]
    batch = ", ".join(f"{n} {name}" for name, n in run["batch"].items())
    windows = ", ".join(f"{run['window_seconds'][m]:g} s of {m}" for m in modalities)
    return (
        f"{manifest['step']:,} steps of {batch} samples per batch; windows of {windows}; seed {run['seed']}; "
        f"peak learning rate {run['learning_rate']:g}; ZeRO stage {manifest['zero_stage']}; "
        f"{manifest.get('arithmetic', 'arithmetic not recorded')}."
    )


def _program_line(program: Mapping[str, Any]) -> str:
    files = " and ".join(f"`{name}`" for name in program["files"])
    return (
        f"\n{files}: {program['modality']} at {program['sfreq_hz']:g} Hz, windows of exactly "
        f"{program['window_seconds']:g} s, at most {program['channels_at_most']} channels, any number of windows at "
        "once; anything else is refused. `programs.json` has names, shapes and units of what goes in.\n"
    )


def site_table(used: Sequence[Recording], corpus: Corpus) -> str:
    """A row per site of the recordings ``used``."""
    sources = read_sources(corpus.path)
    rows = []
    for site in sorted({r.site for r in used}):
        of_site = [r for r in used if r.site == site]
        kind = "simulated" if any(r.simulated for r in of_site) else "recorded"
        tasks = markdown(", ".join(sorted({r.task for r in of_site if r.task}))) or "not stated"
        subjects, samples = len({r.subject for r in of_site}), len({r.key for r in of_site})
        rows.append(
            f"| {markdown(site)} | {kind} | {subjects} | {samples} | {tasks} "
            f"| {_amount(of_site, 'eeg')} | {_amount(of_site, 'fmri')} | {terms_of(sources.get(site, {}))} |"
        )
    head = "| site | kind | subjects | samples | tasks | EEG | BOLD | terms |\n|---|---|---|---|---|---|---|---|\n"
    return head + "\n".join(rows)


def _amount(recordings: Sequence[Recording], modality: Modality) -> str:
    """Hours, numbers of channels or parcels, and rates or repetition times of one modality."""
    of = [r for r in recordings if r.modality == modality]
    if not of:
        return "none"
    channels = sorted({r.n_channels for r in of})
    span = f"{channels[0]}" if len(channels) == 1 else f"{channels[0]} to {channels[-1]}"
    t_r = " or ".join(dict.fromkeys(f"{t_r:.3g}" for t_r in sorted({1 / r.sfreq for r in of})))
    what = f"{span} channels" if modality == "eeg" else f"{span} parcels, TR {t_r} s"
    return f"{sum(r.seconds for r in of) / 3600:.2f} h, {what}"


def cost_line(manifest: Mapping[str, Any], metrics: Sequence[Mapping[str, float]]) -> str:
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


def curve_rows(metrics: Sequence[Mapping[str, float]]) -> str:
    """Loss and terms at the last logged step, and what the last evaluation found beside the untrained model."""
    last: Mapping[str, float] = metrics[-1] if metrics else {}
    shown = ["loss"] * ("loss" in last) + sorted(k for k in last if k.startswith(("loss/", "top1/")))
    rows = [f"| {name} | {last[name]:.4g} |" for name in shown] or ["| (nothing was logged) | |"]
    table = "| quantity at the last logged step | value |\n|---|---|\n" + "\n".join(rows)
    evaluated = [line for line in metrics if "validation/loss" in line]
    return table + (f"\n\n{_validation_table(evaluated)}" if evaluated else "")


def _validation_table(evaluated: Sequence[Mapping[str, float]]) -> str:
    """Values of people who took no part in the training, without the single terms of the loss."""
    last = evaluated[-1]
    names = sorted(name for name in last if name.startswith("validation/") and "/loss/" not in name)
    untrained = {name: f"{value:.4g}" for name, value in (evaluated[0] if evaluated[0]["step"] == 1 else {}).items()}
    rows = [f"| {n.removeprefix('validation/')} | {untrained.get(n, '')} | {last[n]:.4g} |" for n in names]
    head = f"| people set aside, quantity | untrained | step {int(last['step']):,} |\n|---|---|---|\n"
    return head + "\n".join(rows)


def membership_text(evaluation: Mapping[str, Any] | None) -> str:
    """How well an attack tells the people of the pretraining from others, where an evaluation has measured it."""
    rows = [r for r in (evaluation or {}).get("membership", ()) if r["auroc"] is not None]
    if not rows:
        return "It was not examined whether the weights show that a person was in the pretraining data."
    said = "; ".join(
        f"{r['model']}, {r['modality']} {r['auroc']['value']:.3f} ({r['auroc']['ci_low']:.3f} to "
        f"{r['auroc']['ci_high']:.3f}; {r['seen']} seen, {r['unseen']} not)"
        for r in rows
    )
    return (
        "An attack on membership (similarity of a person's windows) separated people of the pretraining data from "
        f"others with an AUROC (0.5: chance; 95 % interval over subjects) of: {said}."
    )


def results_text(evaluation: Mapping[str, Any] | None, corpus: Corpus) -> str:
    """The strict rows of an evaluation, and whose recordings they are of."""
    if evaluation is None:
        return "No evaluation came with this export."
    sites = evaluation["sites"]
    names = markdown(", ".join(f"{s} (simulated)" if v["simulated"] else s for s, v in sites.items()))
    known = evaluation["label"]
    label = markdown(f"{known['name']} ({' against '.join(known['classes']) or 'a number'})")
    own = "the corpus of the pretraining" if evaluation["corpus_index_hash"] == corpus.index_hash else "another corpus"
    seen = evaluation["subjects_seen_in_pretraining"]
    measure = known.get("measure", "auroc")
    rows = [
        f"| {r['recordings']} | {r['protocol']} | {markdown(r['features'])}, {markdown(r['classifier'])} "
        f"| {r[measure]['value']:.3f} ({r[measure]['ci_low']:.3f} to {r[measure]['ci_high']:.3f}) |"
        for r in evaluation["classification"]
        if not r["transductive"] and r[measure] is not None
    ]
    shown = f"{measure.upper()} (95 % interval over subjects)"
    head = f"| recordings | tested on | method | {shown} |\n|---|---|---|---|\n"
    return (
        f"{label} of {evaluation['subjects']} subjects of {own}, {'unknown how many' if seen is None else seen} of "
        f"them seen in pretraining; sites: {names}.\n\n{head}" + "\n".join(rows)
    )
