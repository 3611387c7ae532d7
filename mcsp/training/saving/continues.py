"""Which settings may differ between a run and its continuation."""

from pathlib import Path
from typing import Any

from mcsp.training.rate import SETTINGS, same_so_far

# The same batches, the same gradient but for rounding; and what whoever watches over a run decides about.
FREE = {
    "corpus_dir", "run_dir", "mirror_dir", "checkpoint_every", "keep_checkpoints", "keep_every", "log_every", "resume",
    "workers", "max_bad_windows", "cache_dir", "cache_gb", "deepspeed", "micro_batches",
    "activation_checkpointing", "compile", "init_from", "health", "watchdog_seconds",
    "validate_every", "validation_batches", "keep_best", "collapse_after", "ema_decay", "profile_steps", "trackers",
}  # fmt: skip
# How far a step goes. Steps taken stay as they are, those to come follow the new value, and the run says so.
FROM_NOW_ON = {"learning_rate", "weight_decay", "gradient_clipping"}
# The course of the learning rate, where it stays as it was for the steps that are taken.
AHEAD = set(SETTINGS)


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
    refused = "; ".join(f"{k}: {change}" for k, change in differ.items() if k not in FREE | FROM_NOW_ON | AHEAD)
    if refused:
        raise ValueError(
            f"{path}: the config differs from the saved one ({refused}); restore it, or start another run_dir from "
            f"these weights with init_from={path}"
        )
    applied = manifest["step"] - manifest["health"]["skipped_steps"]
    if not same_so_far(old, new, applied):
        length = old.get("schedule_steps") or old["steps"]
        changed = ", ".join(f"{k}: {old.get(k)} -> {new[k]}" for k in SETTINGS if old.get(k) != new[k])
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
