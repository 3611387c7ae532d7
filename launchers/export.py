"""Export the newest checkpoint of a run: safetensors weights that load without DeepSpeed, with a model card.

python launchers/export.py RUN_DIR OUT_DIR [--corpus CORPUS_DIR]
"""

import argparse
import json
import sys
from pathlib import Path


def main() -> None:
    """Parse, consolidate, write, check, say where."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path, help="folder of a pretraining run")
    parser.add_argument("out_dir", type=Path, help="where the export goes; an earlier export there is replaced")
    parser.add_argument("--corpus", type=Path, help="the run's corpus, if it has moved since")
    arguments = parser.parse_args()
    try:
        export(arguments.run_dir, arguments.out_dir, arguments.corpus)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def export(run_dir: Path, out_dir: Path, corpus_dir: Path | None) -> None:
    """Export ``run_dir``; ``ValueError`` where it has no checkpoint, and as of ``mcsp.downstream.export``."""
    from mcsp.data_sharding.reader import Corpus
    from mcsp.downstream.export import check_out_dir, write_export
    from mcsp.training.checkpoint import latest_checkpoint
    from mcsp.training.metrics import read_metrics

    checkpoint = latest_checkpoint(run_dir)
    if checkpoint is None:
        raise ValueError(f"{run_dir}: expected a pretraining run with a checkpoint, found none")
    check_out_dir(out_dir)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    corpus = Corpus(corpus_dir or Path(manifest["config"]["corpus_dir"]))
    from mcsp.training.engine import consolidate_weights  # the slow import comes last

    print(f"export: step {manifest['step']} of {run_dir}")
    metrics = [line for line in read_metrics(run_dir) if line["step"] <= manifest["step"]]
    write_export(consolidate_weights(checkpoint), manifest, metrics[-1] if metrics else {}, corpus, out_dir)
    print(f"model: {out_dir}  (reloaded; outputs bit-identical to the checkpoint's)")


if __name__ == "__main__":
    main()
