"""Export the newest checkpoint of a run: safetensors weights that load without DeepSpeed, with a model card.

python launchers/export.py RUN_DIR OUT_DIR [--corpus CORPUS_DIR] [--dtype bf16] [--modalities eeg] [--best] [--ema] \\
    [--format torch-export onnx] [--evaluation EVALUATION_DIR] [--contact TEXT] [--terms TEXT]
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Parse, consolidate, write, check, say where."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path, help="folder of a pretraining run")
    parser.add_argument("out_dir", type=Path, help="where the export goes; an earlier export there is replaced")
    parser.add_argument("--best", action="store_true", help="the checkpoint that keep_best kept; default: the newest")
    parser.add_argument("--ema", action="store_true", help="the moving average of the weights, where the run kept one")
    parser.add_argument("--corpus", type=Path, help="the run's corpus, if it has moved since")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="of the stored weights")
    parser.add_argument("--modalities", nargs="+", choices=("fmri", "eeg"), help="encoders to export; default: all")
    parser.add_argument(
        "--format", nargs="+", default=[], choices=("torch-export", "onnx"), dest="formats",
        help="programs of each encoder beside the weights: .pt2 runs with torch alone, .onnx with onnxruntime; minutes",
    )  # fmt: skip
    parser.add_argument("--evaluation", type=Path, help="folder of evaluate's results.json, for the model card")
    parser.add_argument("--contact", help="who answers questions about the weights, for the model card")
    parser.add_argument("--terms", help="under which the weights may be used, for the model card")
    try:
        export(parser.parse_args())
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def export(arguments: argparse.Namespace) -> None:
    """Export a run; ``ValueError`` where it has no checkpoint, and as of ``mcsp.export.export``."""
    import torch

    from mcsp.data_sharding.store.reader import Corpus
    from mcsp.export.export import check_out_dir, write_export
    from mcsp.run_log import read_metrics
    from mcsp.training.saving.checkpoint import latest_checkpoint

    run_dir, out_dir, dtype = arguments.run_dir, arguments.out_dir, arguments.dtype
    checkpoint = latest_checkpoint(run_dir, folder="best") if arguments.best else latest_checkpoint(run_dir)
    if checkpoint is None:
        kind = "one that keep_best kept" if arguments.best else "a checkpoint"
        raise ValueError(f"{run_dir}: expected a pretraining run with {kind}, found none")
    check_out_dir(out_dir)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    corpus = Corpus(arguments.corpus or manifest["config"]["corpus_dir"])
    from mcsp.training.saving.state import EMA, consolidate_weights

    print(f"export: step {manifest['step']} of {run_dir}")
    metrics = [line for line in read_metrics(run_dir) if line["step"] <= manifest["step"]]
    stored = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    evaluation = read_evaluation(arguments.evaluation) if arguments.evaluation else None
    weights = consolidate_weights(checkpoint, EMA if arguments.ema else "weight")
    write_export(
        weights, manifest, metrics, corpus, out_dir, stored, arguments.modalities, evaluation,
        arguments.formats, arguments.contact, arguments.terms,
    )  # fmt: skip
    rounded = "" if dtype == "fp32" else f", its weights rounded to {dtype}"
    print(f"model: {out_dir}  (reloaded; outputs bit-identical to those of the checkpoint{rounded})")


def read_evaluation(folder: Path) -> dict[str, Any]:
    """The content of evaluate's results.json; ``ValueError`` where there is none."""
    path = folder / "results.json"
    if not path.is_file():
        raise ValueError(f"{path}: expected the results of launchers/evaluate.py, found none")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


if __name__ == "__main__":
    main()
