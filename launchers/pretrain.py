"""Pretrain on a corpus.

One process:      python launchers/pretrain.py --config configs/pretrain/demo.yaml corpus_dir=DIR run_dir=DIR
Two on this host: deepspeed --num_accelerators 2 launchers/pretrain.py --config ... (the same arguments)
Many hosts:       deepspeed --hostfile HOSTS launchers/pretrain.py --config ... (run_dir on a shared file system)

Killed or stopped, the same command continues from the last checkpoint with the same weights as if nothing happened.
SIGTERM or SIGUSR1 to a rank, or a file run_dir/STOP, ends the run after its step, with a checkpoint.
Exit status: 0 finished, 75 asked to stop (run it again), 70 hung, 65 too many bad steps, 2 bad input, 1 anything else;
run_dir/exit.json says more. docs/training.md explains how to run it for weeks.
"""

import errno
import os
import sys

from mcsp.config import PretrainConfig, parse_command_line


def main() -> None:
    """Parse, train, say where the results are."""
    config, _ = parse_command_line(PretrainConfig, __doc__ or "")
    from mcsp.training.run import pretrain  # after parsing: a typing error should not wait for DeepSpeed's import

    try:
        code = pretrain(config)
    except ValueError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print(f"error: {config.run_dir}: {error.strerror}; make room and run the same command again", file=sys.stderr)
        raise SystemExit(1) from None
    if os.environ.get("RANK", "0") == "0":
        print(f"run: {config.run_dir}  (metrics.jsonl, events.jsonl, tensorboard/, checkpoints/)")
    raise SystemExit(code)


if __name__ == "__main__":
    main()
