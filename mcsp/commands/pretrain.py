"""``mcsp pretrain``: pretrain on a corpus, in one process or under the deepspeed launcher."""

import faulthandler
import os
import sys
import traceback

from mcsp.commands.settings import takes
from mcsp.config import PretrainConfig


@takes(PretrainConfig, ("corpus_dir",))
def pretrain(config: PretrainConfig, *, check: bool = False) -> int:
    """Pretrain on a corpus.

    One process:      mcsp pretrain --config pretrain/demo.yaml corpus_dir=DIR ...
    Two on this host: deepspeed --num_accelerators 2 launchers/pretrain.py ...
    Many hosts:       deepspeed --hostfile HOSTS launchers/pretrain.py ...
    Where there is no checkout: deepspeed --module mcsp pretrain ...
    With --check any of these says what the run would need (memory, hours, disk), and
    ends without a trace.

    Killed or stopped, the same command continues from the last checkpoint with the
    same weights as if nothing happened. Ctrl-C, SIGTERM or SIGUSR1 to a rank, or a
    file run_dir/STOP, ends the run after its step, with a checkpoint. Exit status:
    0 finished, 75 asked to stop (run it again), 74 disk full (make room, run it
    again), 70 hung, 66 collapsed, 65 too many bad steps, 2 bad input, 130 Ctrl-C
    before the first step, 1 anything else; run_dir/exit.json says more.
    docs/training.md explains how to run it for weeks.

    Args:
        check: say what a run would need, and end without a trace
    """
    faulthandler.enable()  # a table that is cut off while it is mapped ends in SIGBUS: say where
    try:
        # After parsing: a typing error should not wait for DeepSpeed's import.
        from torch import distributed

        from mcsp.training.run import InUse, status_of
        from mcsp.training.run import pretrain as run
        from mcsp.training.stopping import EXIT_DISK, leave
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    told, heard = "", os.environ.get("RANK", "0") == "0"
    try:
        if check:
            from mcsp.training.check import check as check_run
            from mcsp.training.check import in_words

            told, code = in_words(check_run(config), config), 0
        else:
            code = run(config)
            told = f"run: {config.run_dir}  (metrics.jsonl, events.jsonl, tensorboard/, checkpoints/)"
    except (InUse, ValueError) as error:
        told, code = f"error: {error}", status_of(error)
        heard = heard or not distributed.is_initialized()  # before ranks can talk, each speaks for itself
    except KeyboardInterrupt as error:
        told, code = "interrupted before the first step", status_of(error)
    except BaseException as error:  # noqa: BLE001, the process ends here
        code = status_of(error)
        if code == EXIT_DISK:
            told = f"error: {config.run_dir}: {error}; make room and run the same command again"
        else:
            traceback.print_exc()
    if told and heard:
        print(told, file=sys.stderr if told.startswith(("error:", "interrupted")) else sys.stdout)
    leave(code)
    return code
