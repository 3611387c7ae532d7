"""``mcsp pretrain``: pretrain on a corpus, in one process or under the deepspeed launcher."""

import faulthandler
import json
import os
import socket
import subprocess
import sys
import traceback
from importlib.util import find_spec

from mcsp.commands.settings import takes
from mcsp.config import PretrainConfig


@takes(PretrainConfig, ("corpus_dir",))
def pretrain(config: PretrainConfig, *, check: bool = False, ranks: int | None = None, verbose: bool = False) -> int:
    """Pretrain on a corpus.

    One process:      mcsp pretrain --config pretrain/demo.yaml corpus_dir=DIR ...
    Two on this host: mcsp pretrain --ranks 2 ...
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
        check: print what a run would need; run_dir stays untouched
        ranks: number of processes on this host, started by DeepSpeed's launcher
        verbose: also show the lines of that launcher
    """
    if ranks is not None:
        return _start(ranks, config, check, verbose)
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


def starter(verbose: bool = False) -> list[str]:
    """The command that starts ranks on this host: DeepSpeed's launcher, which says a dozen lines of its own if let.

    Raises:
        ValueError: DeepSpeed is not installed.
    """
    if find_spec("deepspeed") is None:
        raise ValueError(
            "deepspeed: expected for the pretraining, not installed: pip install 'mcsp-pretraining[train]'"
        )
    with socket.socket() as free:  # DeepSpeed's own choice is one port for all runs of a machine
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    level = "info" if verbose else "error"
    return [sys.executable, "-m", "deepspeed.launcher.runner", "--log_level", level, "--master_port", port]


def _start(ranks: int, config: PretrainConfig, check: bool, verbose: bool) -> int:
    """The same command in so many processes; its exit status."""
    import torch

    environment = dict(os.environ)
    if not torch.cuda.is_available():
        environment.setdefault("DS_ACCELERATOR", "cpu")
    settings = [f"{key}={json.dumps(value)}" for key, value in config.dump().items()]
    command = [*starter(verbose), "--num_accelerators", str(ranks), "--module", "mcsp", "pretrain", *settings]
    return subprocess.run([*command, *(["--check"] if check else [])], env=environment, check=False).returncode
