"""Export the newest checkpoint of a run: safetensors weights that load without DeepSpeed, with a model card.

python launchers/export.py RUN_DIR OUT_DIR [--corpus CORPUS_DIR] [--dtype bf16] [--modalities eeg]
"""

import argparse
import json
import sys
from pathlib import Path

from mcsp.schema import Modality


def main() -> None:
    """Parse, consolidate, write, check, say where."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path, help="folder of a pretraining run")
    parser.add_argument("out_dir", type=Path, help="where the export goes; an earlier export there is replaced")
    parser.add_argument("--corpus", type=Path, help="the run's corpus, if it has moved since")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="of the stored weights")
    parser.add_argument("--modalities", nargs="+", choices=("fmri", "eeg"), help="encoders to export; default: all")
    arguments = parser.parse_args()
    try:
        export(arguments.run_dir, arguments.out_dir, arguments.corpus, arguments.dtype, arguments.modalities)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def export(
    run_dir: Path, out_dir: Path, corpus_dir: Path | None, dtype: str, modalities: list[Modality] | None
) -> None:
    """Export ``run_dir``; ``ValueError`` where it has no checkpoint, and as of ``mcsp.downstream.export``."""
    import torch

    from mcsp.data_sharding.reader import Corpus
    from mcsp.downstream.export import check_out_dir, write_export
    from mcsp.training.checkpoint import latest_checkpoint
    from mcsp.training.metrics import read_metrics

    checkpoint = latest_checkpoint(run_dir)
    if checkpoint is None:
        raise ValueError(f"{run_dir}: expected a pretraining run with a checkpoint, found none")
    check_out_dir(out_dir)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    corpus = Corpus(corpus_dir or manifest["config"]["corpus_dir"])
    from mcsp.training.state import consolidate_weights

    print(f"export: step {manifest['step']} of {run_dir}")
    metrics = [line for line in read_metrics(run_dir) if line["step"] <= manifest["step"]]
    stored = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    last = metrics[-1] if metrics else {}
    write_export(consolidate_weights(checkpoint), manifest, last, corpus, out_dir, stored, modalities)
    rounded = "" if dtype == "fp32" else f", its weights rounded to {dtype}"
    print(f"model: {out_dir}  (reloaded; outputs bit-identical to those of the checkpoint{rounded})")


if __name__ == "__main__":
    main()
