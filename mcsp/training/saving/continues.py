"""What a run begins with: which settings may differ from those of the run it continues, or the weights of another one.

``python -m mcsp.training.saving.continues`` prints the table of docs/training.md.
"""

from pathlib import Path
from typing import Any

from torch import nn

from mcsp.config import ModelConfig, PretrainConfig
from mcsp.config.pretrain import SETTINGS, same_so_far
from mcsp.model.weights import CONFIG_FILE, ExportedMCSP, load_export
from mcsp.training.saving import checkpoint
from mcsp.training.saving.state import State

# The same batches, the same gradient but for rounding; and what whoever watches over a run decides about.
FREE = {
    "corpus_dir", "run_dir", "mirror_dir", "checkpoint_every", "keep_checkpoints", "keep_every", "log_every", "resume",
    "workers", "max_bad_windows", "cache_dir", "cache_gb", "deepspeed", "micro_batches",
    "activation_checkpointing", "compile", "init_from", "spatial_start", "watchdog_seconds",
    "validate_every", "validation_batches", "keep_best", "collapse_after", "ema_decay", "profile_steps", "trackers",
}  # fmt: skip
# How far a step goes, or whether it counts. Steps taken stay as they are, those to come follow the new value, and the
# run says so.
FROM_NOW_ON = {"learning_rate", "weight_decay", "gradient_clipping", "health"}
# The course of the learning rate, where it stays as it was for the steps that are taken.
AHEAD = set(SETTINGS)
# Everything else. Why, and what to do instead.
_OTHER_DATA = "each step would read something else; start another run_dir with init_from"
_OTHER_GOAL = "the loss would be another one; start another run_dir with init_from"
REFUSED = {
    "seed": _OTHER_DATA,
    "batch": _OTHER_DATA + "; to save memory raise micro_batches instead",
    "window_seconds": _OTHER_DATA,
    "hemodynamic_delay_seconds": _OTHER_DATA,
    "site_temperature": _OTHER_DATA,
    "sites_per_batch": _OTHER_DATA,
    "shuffle_shards": _OTHER_DATA,
    "augmentation": "views would be others; start another run_dir with init_from",
    "objective": _OTHER_GOAL,
    "model": "the weights would not fit; start another run_dir from the beginning",
    "precision": "leave it as it was: auto may change with the hardware, and the run says so; "
    "else start another run_dir with init_from",
}


def changes(path: Path, manifest: dict[str, Any], facts: dict[str, Any]) -> dict[str, str]:
    """What of a run with ``facts`` differs from the one that saved this checkpoint, and changes its numbers.

    Ranks, ZeRO stage and micro-batches may differ: the data stay the same, the numbers up to rounding.

    Returns:
        ``"old -> new"`` by setting: those of :data:`FROM_NOW_ON`, and ``arithmetic`` (precision and device).

    Raises:
        ValueError: the run may not continue from it; says what to do.
    """
    if manifest["index_hash"] != facts["index_hash"]:
        raise ValueError(
            f"{path}: checkpoint of another corpus (index {manifest['index_hash'][:12]}, the given corpus has "
            f"{facts['index_hash'][:12]}); use that corpus, another run_dir, or resume=never with an empty run_dir"
        )
    old, new = manifest["config"], facts["config"]
    differ = {k: f"{old.get(k)} -> {new.get(k)}" for k in sorted(set(old) | set(new)) if old.get(k) != new.get(k)}
    refused = [k for k in differ if k not in FREE | FROM_NOW_ON | AHEAD]
    if refused:
        what = "; ".join(_difference(k, old.get(k), new.get(k)) for k in refused)
        why = dict.fromkeys(REFUSED.get(k, "it is not a setting of this version") for k in refused)
        raise ValueError(
            f"{path}: the config differs from the saved one ({what}); restore it. Otherwise {', and '.join(why)} "
            f"(init_from={path})"
        )
    applied = manifest["step"] - manifest["health"]["skipped_steps"]
    if not same_so_far(old, new, applied):
        length = old.get("schedule_steps") or old["steps"]
        changed = ", ".join(f"{k}: {old.get(k)} -> {new.get(k)}" for k in SETTINGS if old.get(k) != new.get(k))
        raise ValueError(
            f"{path}: with these settings the learning rate of the {applied} steps taken would have been another "
            f"({changed}); to lengthen the run add schedule_steps={length} (steps beyond it keep the final rate), or "
            f"start another run_dir with init_from={path}"
        )
    found = {k: change for k, change in differ.items() if k in FROM_NOW_ON}
    then, now = manifest.get("arithmetic"), facts["arithmetic"]
    if then not in (None, now):  # None: a checkpoint of before
        found["arithmetic"] = f"{then} -> {now}"
    return found


def in_words(path: Path, manifest: dict[str, Any], facts: dict[str, Any]) -> list[str]:
    """Lines that a continued run prints: its checkpoint, and the effect of each changed setting."""
    old, new = manifest["config"], facts["config"]
    said = [f"continues from {path.name}: {manifest['step']} of {new['steps']} steps are taken"]
    for k in sorted(new):
        if k in old and old[k] != new[k] and k not in ("run_dir", "resume"):
            effect = "steps from here on follow it" if k in FROM_NOW_ON | AHEAD else "changes nothing in the results"
            said.append(f"{k}: {old[k]} -> {new[k]}: {effect}")
    if manifest.get("arithmetic") not in (None, facts["arithmetic"]):
        said.append(f"arithmetic: {manifest['arithmetic']} -> {facts['arithmetic']}: numbers change by rounding")
    then, now = ((f["world_size"], f["zero_stage"]) for f in (manifest, facts))
    if then != now:
        said.append(
            f"saved by {then[0]} ranks at ZeRO-{then[1]}, continued with {now[0]} at ZeRO-{now[1]}: the same data, "
            "numbers equal up to rounding"
        )
    return said


def table() -> str:
    """Markdown: which settings of a run may change when it continues."""
    kinds = {
        **dict.fromkeys(FREE, ("freely", "")),
        **dict.fromkeys(FROM_NOW_ON, ("yes", "steps from there on follow it; logged as an event")),
        **dict.fromkeys(AHEAD, ("ahead", "where the learning rate of the steps taken stays as it was")),
        **{name: ("no", why) for name, why in REFUSED.items()},
    }
    names: dict[tuple[str, str], list[str]] = {}
    for name in PretrainConfig.model_fields:
        names.setdefault(kinds[name], []).append(f"`{name}`")
    rows = [f"| {may} | {', '.join(names[may, why])} | {why} |" for may, why in names]
    return "| may change | settings | what follows, or what to do instead |\n|---|---|---|\n" + "\n".join(rows)


if __name__ == "__main__":
    print(table())


def start_from(source: Path, module: nn.Module, model: ModelConfig) -> str:
    """Fill ``module`` (a :class:`~mcsp.training.pretrainer.Pretrainer`); a sentence that says with what.

    An export has no temperatures: they keep their initial values.

    Raises:
        ValueError: nothing of the three kinds there, a damaged file, or another architecture.
    """
    if (source / CONFIG_FILE).is_file() and not (source / "checkpoints").is_dir():
        exported = load_export(source, ExportedMCSP)
        _check_same(source, exported.config, model)
        weights = {f"model.{name}": value for name, value in exported.state_dict().items()}
        module.load_state_dict(weights, strict=False)
        return f"weights of the export {source}"
    is_run = (source / "checkpoints").is_dir()
    found = checkpoint.latest_checkpoint(source) if is_run else source
    if found is None or not (is_run or (found / checkpoint.MANIFEST).is_file()):
        raise ValueError(f"init_from={source}: expected a run with a checkpoint, a checkpoint or an export, found none")
    manifest = checkpoint.read_manifest(found)
    _check_same(found, ModelConfig.parse(manifest["model_config"], str(found / checkpoint.MANIFEST)), model)
    state = State(found)
    own = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    weights = {name: state.whole("weight", name) for name, shape in state.shapes.items() if own.get(name) == shape}
    module.load_state_dict(weights, strict=False)
    return f"weights of {found} (step {manifest['step']})"


def _check_same(source: Path, found: ModelConfig, expected: ModelConfig) -> None:
    """Raise ``ValueError`` with what differs between two architectures."""
    if found != expected:
        changed = _difference("model", found.dump(), expected.dump())
        raise ValueError(f"init_from={source}: weights of another architecture ({changed}); set model to match")


def _difference(name: str, old: Any, new: Any) -> str:
    """What changed, of a section the keys that did; long values, as positions of parcels, are cut."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
        return "; ".join(_difference(f"{name}.{key}", old.get(key), new.get(key)) for key in keys)
    before, after = (text if len(text) <= 80 else f"{text[:77]}..." for text in (str(old), str(new)))
    return f"{name}: {before} -> {after}"
