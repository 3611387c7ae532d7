"""Turn the weights of a run into an export: written aside, loaded again, compared bit for bit, then renamed.

Shape letters: B rows, C channels, T time samples.
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mcsp.batch import Signal
from mcsp.config import ModelConfig
from mcsp.data_sharding.store.reader import Corpus
from mcsp.encode.parcellations import parcellations_of
from mcsp.encode.pretrained import from_pretrained
from mcsp.export.card import model_card
from mcsp.model.mcsp import MCSP
from mcsp.model.weights import CONFIG_FILE, SUBJECTS_FILE, WEIGHTS_FILE, load_weights, write_pretrained, write_sums
from mcsp.output import write_whole
from mcsp.outside import sha256_file
from mcsp.schema import KEY_FINGERPRINT, MODALITIES, UNITS, Modality, units_of

CURVES_FILE, PROGRAMS_FILE = "loss.png", "programs.json"


def write_export(
    weights: dict[str, Tensor],
    manifest: dict[str, Any],
    metrics: Sequence[dict[str, float]],
    corpus: Corpus,
    out_dir: Path,
    dtype: torch.dtype = torch.float32,
    modalities: Sequence[Modality] | None = None,
    evaluation: dict[str, Any] | None = None,
    formats: Sequence[str] = (),
    contact: str | None = None,
    terms: str | None = None,
) -> None:
    """Write an export of ``weights`` to ``out_dir``, replacing an earlier export there.

    Args:
        weights: float32, under the names of ``MCSP.state_dict()``.
        manifest: of the checkpoint: ``step``, ``config``, ``model_config``, ``index_hash``.
        metrics: lines of metrics.jsonl up to the checkpoint, for the model card.
        corpus: the one that the run was trained on.
        out_dir: the folder.
        dtype: that weights are stored in; with bfloat16 the file is half as large, and loading rounds nothing more.
        modalities: the encoders that go along; None: all that the model has.
        evaluation: content of evaluate's results.json, for the model card.
        formats: "torch-export" and "onnx" write programs beside, see :mod:`mcsp.export.program`.
        contact, terms: who answers questions about the weights, and how they may be used, for the model card.

    Raises:
        ValueError: a format that the model's operators do not allow, ``out_dir`` holds something else, a modality that
            the model lacks, another corpus than the checkpoint's, weights that do not match, or an export that does not
            give back the same numbers.
    """
    check_out_dir(out_dir)
    out_dir = out_dir.absolute()  # "." has no name to write aside with
    if corpus.index_hash != manifest["index_hash"]:
        found = f"expected index hash {manifest['index_hash'][:12]}, found {corpus.index_hash[:12]}"
        raise ValueError(f"{corpus.path}: the checkpoint belongs to another corpus: {found}")
    config = ModelConfig.parse(manifest["model_config"], "manifest.json: model_config")
    if modalities is not None:
        config, weights = only(config, weights, modalities)
    model = MCSP(config).eval()
    load_weights(model, {name: weight.to(dtype).float() for name, weight in weights.items()}, "checkpoint")
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    aside = out_dir.with_name(f".{out_dir.name}.{os.getpid()}.partial")
    try:
        preprocessing = preprocessing_of(manifest, corpus, model.config.modalities)
        write_pretrained(model, aside, preprocessing, dtype)
        subjects = pretraining_subjects(corpus)
        write_whole(aside / SUBJECTS_FILE, "".join(f"{subject}\n" for subject in subjects))
        programs = write_programs(model, corpus, manifest["config"]["window_seconds"], aside, formats)
        card = model_card(
            model, manifest, metrics, corpus, preprocessing, len(subjects), evaluation,
            write_curves(metrics, aside), programs, contact, terms, sha256_file(aside / WEIGHTS_FILE),
        )  # fmt: skip
        write_whole(aside / "README.md", card)
        write_sums(aside)
        check_same(model, from_pretrained(aside))
        _replace(aside, out_dir)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_curves(metrics: Sequence[dict[str, float]], folder: Path) -> str | None:
    """Draw the run's curves into ``folder``; the file's name, or None without matplotlib or anything to draw."""
    try:
        from mcsp.export.curves import draw_curves
    except ModuleNotFoundError:  # a training environment may lack what evaluation needs
        return None
    if len(metrics) < 2:
        return None
    draw_curves(metrics).savefig(folder / CURVES_FILE, dpi=90)
    return CURVES_FILE


def write_programs(
    model: MCSP, corpus: Corpus, window_seconds: Mapping[str, float], folder: Path, formats: Sequence[str]
) -> dict[str, Any]:
    """Programs of every modality, for the corpus' commonest rate, its largest montage and the pretraining's window.

    Returns:
        What ``programs.json`` says: for each modality its files, and what they take; empty without ``formats``.
    """
    if not formats:
        return {}
    from mcsp.export import program

    described: dict[str, Any] = {}
    for modality in model.config.modalities:
        recordings = [r for r in corpus.recordings if r.modality == modality]
        sfreq = Counter(r.sfreq for r in recordings).most_common(1)[0][0]
        channels = max(r.n_channels for r in recordings)
        samples = round(window_seconds[modality] * sfreq)
        recorded = program.record(program.EncoderProgram(model, modality, sfreq), channels, samples)
        files = []
        if "torch-export" in formats:
            files.append(f"{modality}.pt2")
            program.write_program(recorded, folder / files[-1])
        if "onnx" in formats:
            files.append(f"{modality}.onnx")
            program.write_onnx(recorded, folder / files[-1])
        described[modality] = {"files": files, **recorded.description()}
    write_whole(folder / PROGRAMS_FILE, json.dumps(described, indent=2) + "\n")
    return described


def only(
    config: ModelConfig, weights: dict[str, Tensor], modalities: Sequence[Modality]
) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Configuration and weights of the encoders of ``modalities`` alone; they do not depend on the others."""
    unknown = [m for m in modalities if m not in config.modalities]
    if unknown or not modalities:
        raise ValueError(f"modalities: expected some of {list(config.modalities)}, found {list(modalities)}")
    kept = tuple(m for m in config.modalities if m in modalities)
    parts = {f"{m}_{d}" for m in kept for d in config.domains}
    return (
        config.model_copy(update={"modalities": kept}),
        {name: weight for name, weight in weights.items() if name.split(".")[1] in parts},
    )


def check_out_dir(out_dir: Path) -> None:
    """Raise ``ValueError`` if ``out_dir`` exists and is neither an export nor an empty folder."""
    is_export = (out_dir / CONFIG_FILE).is_file() and (out_dir / WEIGHTS_FILE).is_file()
    if out_dir.exists() and not is_export and not (out_dir.is_dir() and not any(out_dir.iterdir())):
        raise ValueError(f"{out_dir}: expected a new folder or an earlier export to replace, found something else")


def preprocessing_of(manifest: Mapping[str, Any], corpus: Corpus, modalities: tuple[Modality, ...]) -> dict[str, Any]:
    """What was done to the recordings before the model saw them, without any path of the machine."""
    config, run = corpus.index["config"], manifest["config"]
    cleaning = {
        "eeg": {
            **config["eeg"],
            "reference": "average of the good channels",
            "notch": "PowerLineFrequency of the sidecar, where it lies below lowpass_hz",
            "position_frame": "MNE head frame, mm",
        },
        "fmri": {
            **{k: v for k, v in config["fmri"].items() if k != "label_image"},
            "baseline": "percent signal change relative to the mean of each parcel; a recording without a mean is "
            "divided by its own robust amplitude (a.u.)",
            "position_frame": "MNI, mm",
        },
    }
    found = {(r.modality, r.unit) for r in corpus.recordings if r.split == "train"}
    units = {m: [unit for unit in units_of(m) if (m, unit) in found] or [UNITS[m]] for m in modalities}
    sites = {r.site for r in corpus.recordings}
    return {
        "units": {m: " or ".join(units[m]) for m in modalities},
        "scaling": "none: the model takes values in these units (stored value * scale of the recording)",
        "sfreq_hz": {
            m: sorted({round(r.sfreq, 6) for r in corpus.recordings if r.modality == m and r.split == "train"})
            for m in modalities
        },
        "window_seconds": {m: run["window_seconds"][m] for m in modalities},
        "hemodynamic_delay_seconds": run["hemodynamic_delay_seconds"],
        "cleaning": {m: cleaning[m] for m in modalities},
        "min_seconds": {m: config["min_seconds"][m] for m in modalities},
        "parcellations": parcellations_of(corpus.recordings, _atlases(config, sites)) if "fmri" in modalities else [],
        "corpus_index_hash": corpus.index_hash,
        KEY_FINGERPRINT: corpus.index.get(KEY_FINGERPRINT),
        "software": {**corpus.index.get("software", {}), "torch": str(torch.__version__)},
    }


def _atlases(config: Mapping[str, Any], sites: Iterable[str]) -> dict[str, str]:
    """What the parcels of each site are from, as the corpus was told: the name of an atlas, or of a file."""
    found = {}
    for site in sites:
        own = config["sites"].get(site, {})
        told = {**config["fmri"], **own.get("fmri", {})}
        image = own.get("label_image") or told["label_image"]
        found[site] = told["atlas"] or (Path(image).name if image else "")
    return found


def pretraining_subjects(corpus: Corpus) -> list[str]:
    """``site/subject`` of every subject in the training split, sorted; subjects are keyed hashes."""
    return sorted({f"{r.site}/{r.subject}" for r in corpus.recordings if r.split == "train"})


def fixed_signals(modalities: tuple[Modality, ...]) -> dict[Modality, Signal]:
    """The same random windows for every call: two rows per modality, one of them with padded channels and time."""
    generator = torch.Generator().manual_seed(0)
    signals: dict[Modality, Signal] = {}
    for modality in (m for m in MODALITIES if m in modalities):
        c, t, sfreq = (6, 2000, 200.0) if modality == "eeg" else (10, 40, 0.5)
        channel_valid = torch.ones(2, c, dtype=torch.bool)
        time_valid = torch.ones(2, t, dtype=torch.bool)
        channel_valid[1, c // 2 :] = False
        time_valid[1, t // 2 :] = False
        x_BCT = 10 * torch.randn(2, c, t, generator=generator)
        signals[modality] = Signal(
            x_BCT=x_BCT * channel_valid[..., None] * time_valid[:, None], sfreq_B=torch.full((2,), sfreq),
            channel_valid_BC=channel_valid, time_valid_BT=time_valid,
            position_BC3=60 * torch.randn(2, c, 3, generator=generator) * channel_valid[..., None],
            position_valid_BC=channel_valid, sample_B=torch.arange(2), key_B=torch.zeros(2, dtype=torch.int64),
        )  # fmt: skip
    return signals


def check_same(model: MCSP, other: MCSP) -> None:
    """Raise ``ValueError`` unless both give bit-identical features, h and z on :func:`fixed_signals`."""
    signals = fixed_signals(model.config.modalities)
    with torch.inference_mode():
        for m in signals:
            a, b = _outputs(model, signals, m), _outputs(other, signals, m)
            if not (torch.isfinite(a).all() and torch.equal(a, b)):
                raise ValueError(f"export: the {m} outputs of the reloaded model differ from those of the checkpoint")


def _outputs(model: MCSP, signals: dict[Modality, Signal], modality: Modality) -> Tensor:
    encoded = model.encode(signals)[modality]
    z = [model.project(modality, domain, h_BD) for domain, h_BD in encoded.items()]
    return torch.cat([model.features(signals)[modality], *(h.float() for h in encoded.values()), *z], dim=-1)


def _replace(aside: Path, out_dir: Path) -> None:
    """Rename ``aside`` to ``out_dir``; an earlier export is moved away first and deleted last."""
    old = out_dir.with_name(f".{out_dir.name}.{os.getpid()}.old")
    if out_dir.exists():
        out_dir.rename(old)
    try:
        aside.rename(out_dir)
    except OSError:
        if old.exists():
            old.rename(out_dir)
        raise
    shutil.rmtree(old, ignore_errors=True)
