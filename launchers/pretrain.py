"""Pretrain on a corpus.

One process:      python launchers/pretrain.py --config configs/pretrain/demo.yaml corpus_dir=DIR run_dir=DIR
Two on this host: deepspeed --num_accelerators 2 launchers/pretrain.py --config ... (the same arguments)
Many hosts:       deepspeed --hostfile HOSTS launchers/pretrain.py --config ... (run_dir on a shared file system)

Killed or stopped, the same command continues from the last checkpoint with the same weights as if nothing happened.
"""

import os
import sys

from mcsp.config import PretrainConfig, parse_command_line


def main() -> None:
    """Parse, train, say where the results are."""
    config, _ = parse_command_line(PretrainConfig, __doc__ or "")
    from mcsp.training.trainer import pretrain  # after parsing: a typing error should not wait for DeepSpeed's import

    try:
        run_dir = pretrain(config)
    except ValueError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    if os.environ.get("RANK", "0") == "0":
        print(f"run: {run_dir}  (metrics.jsonl, tensorboard/, checkpoints/)")


if __name__ == "__main__":
    main()
