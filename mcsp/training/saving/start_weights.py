"""Weights that a new run starts from: those of a run, of one checkpoint, or of an export. Weights only, any ZeRO stage
and number of ranks: the optimizer starts anew, and so do step, order and learning rate."""

from pathlib import Path

from torch import nn

from mcsp.config import ModelConfig
from mcsp.model.weights import CONFIG_FILE, ExportedMCSP, load_export
from mcsp.training.saving import checkpoint
from mcsp.training.saving.state import State


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
    old, new = found.dump(), expected.dump()
    changed = "; ".join(f"model.{name}: {old[name]} -> {new[name]}" for name in new if old[name] != new[name])
    if changed:
        raise ValueError(f"init_from={source}: weights of another architecture ({changed}); set model to match")
