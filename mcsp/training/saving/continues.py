"""Which settings may differ between a run and its continuation."""

from pathlib import Path
from typing import Any

# The same batches, the same gradient but for rounding; and what whoever watches over a run decides about.
FREE = {
    "corpus_dir", "run_dir", "mirror_dir", "checkpoint_every", "keep_checkpoints", "keep_every", "log_every", "resume",
    "workers", "max_bad_windows", "cache_dir", "cache_gb", "steps", "schedule_steps", "deepspeed", "micro_batches",
    "activation_checkpointing", "compile", "init_from", "health", "watchdog_seconds",
    "validate_every", "validation_batches", "keep_best", "collapse_after",
}  # fmt: skip
# How far a step goes. Steps taken stay as they are, those to come follow the new value, and the run says so.
FROM_NOW_ON = {"learning_rate", "weight_decay", "gradient_clipping"}


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
    refused = "; ".join(f"{k}: {change}" for k, change in differ.items() if k not in FREE | FROM_NOW_ON)
    if refused:
        raise ValueError(
            f"{path}: the config differs from the saved one ({refused}); restore it, or start another run_dir from "
            f"these weights with init_from={path}"
        )
    lengths = [config.get("schedule_steps") or config["steps"] for config in (old, new)]
    if lengths[0] != lengths[1]:
        raise ValueError(
            f"{path}: its learning rate was scheduled over {lengths[0]} steps, this run asks for {lengths[1]}; add "
            f"schedule_steps={lengths[0]} (steps beyond it keep the final rate), or start another run_dir with "
            f"init_from={path}"
        )
    found = {k: change for k, change in differ.items() if k in FROM_NOW_ON}
    then, now = manifest.get("arithmetic"), facts["arithmetic"]
    if then not in (None, now):  # None: a checkpoint of before
        found["arithmetic"] = f"{then} -> {now}"
    return found
