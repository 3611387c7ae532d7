"""``mcsp plot`` and ``mcsp export``: a picture and the weights of a pretraining run."""

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from mcsp.commands.settings import require_place
from mcsp.outside import read_object
from mcsp.run_log import read_events, read_metrics


def plot(run_dir: Path, /, *, out: Path | None = None) -> int:
    """Draw a pretraining run: losses, validation, time, faults.

    Args:
        run_dir: folder of a pretraining run, finished or not
        out: PNG to write; RUN_DIR/run.png where omitted
    """
    out = out or run_dir / "run.png"
    lines = read_metrics(run_dir)
    if not lines:
        raise ValueError(f"{run_dir}: expected a pretraining run with metrics.jsonl, found no line of one")
    from mcsp.commands.plot import draw

    draw(run_dir, lines, read_events(run_dir), out)
    print(f"plot: {out}")
    return 0


def export(
    run_dir: Path,
    out_dir: Path,
    /,
    *,
    best: bool = False,
    ema: bool = False,
    corpus: Path | None = None,
    dtype: Literal["fp32", "bf16"] = "fp32",
    modalities: Annotated[list[Literal["fmri", "eeg"]] | None, Parameter(consume_multiple=True)] = None,
    formats: Annotated[
        tuple[Literal["torch-export", "onnx"], ...], Parameter(name="--format", consume_multiple=True)
    ] = (),
    evaluation: Path | None = None,
    contact: str | None = None,
    terms: str | None = None,
) -> int:
    """Export the newest checkpoint of a run: safetensors weights that load without DeepSpeed, with a model card.

    mcsp export RUN_DIR OUT_DIR [--dtype bf16] [--modalities eeg] [--format torch-export onnx]

    Args:
        run_dir: folder of a pretraining run
        out_dir: where the export goes; an earlier export there is replaced
        best: the checkpoint that keep_best kept; default: the newest
        ema: the moving average of the weights, where the run kept one
        corpus: the run's corpus, if it has moved since
        dtype: of the stored weights
        modalities: encoders to export; default: all
        formats: programs of each encoder beside the weights, in minutes: .pt2 for torch alone, .onnx for onnxruntime
        evaluation: folder of evaluate's results.json, for the model card
        contact: who answers questions about the weights, for the model card
        terms: under which the weights may be used, for the model card
    """
    require_place(run_dir, "run_dir")
    import torch

    from mcsp.data_sharding.store.reader import Corpus
    from mcsp.export.export import check_out_dir, write_export
    from mcsp.training.saving.checkpoint import latest_checkpoint
    from mcsp.training.saving.state import EMA, consolidate_weights

    checkpoint = latest_checkpoint(run_dir, folder="best") if best else latest_checkpoint(run_dir)
    if checkpoint is None:
        kind = "one that keep_best kept" if best else "a checkpoint"
        raise ValueError(f"{run_dir}: expected a pretraining run with {kind}, found none")
    check_out_dir(out_dir)
    manifest = read_object(checkpoint / "manifest.json")
    read = Corpus(corpus or manifest["config"]["corpus_dir"])
    print(f"export: step {manifest['step']} of {run_dir}")
    metrics = [line for line in read_metrics(run_dir) if line["step"] <= manifest["step"]]
    stored = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    scored = read_evaluation(evaluation) if evaluation else None
    weights = consolidate_weights(checkpoint, EMA if ema else "weight")
    write_export(weights, manifest, metrics, read, out_dir, stored, modalities, scored, formats, contact, terms)
    rounded = "" if dtype == "fp32" else f", its weights rounded to {dtype}"
    print(f"model: {out_dir}  (reloaded; outputs bit-identical to those of the checkpoint{rounded})")
    return 0


def read_evaluation(folder: Path) -> dict[str, Any]:
    """The content of evaluate's results.json; ``ValueError`` where there is none."""
    path = folder / "results.json"
    if not path.is_file():
        raise ValueError(f"{path}: expected the results of mcsp evaluate, found none")
    return read_object(path)
