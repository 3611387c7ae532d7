"""``mcsp pretrain``, in one process or under the deepspeed launcher; of its runs ``mcsp plot`` and ``mcsp export``."""

import faulthandler
import os
import signal
import socket
import subprocess
import sys
import traceback
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from mcsp.commands.settings import require_place, takes
from mcsp.config import PretrainConfig
from mcsp.outside import read_object
from mcsp.run_log import read_events, read_metrics


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
    command = [*starter(verbose), "--num_accelerators", str(ranks), "--module", "mcsp", "pretrain"]
    command += config.as_words()
    # In a session of its own: the launcher would answer Ctrl-C with tracebacks, and kill ranks that save for long.
    process = subprocess.Popen([*command, *(["--check"] if check else [])], env=environment, start_new_session=True)
    interrupts = 0

    def pass_on(number: int, frame: FrameType | None) -> None:
        """To the ranks, or to the launcher where none has begun; a second Ctrl-C ends all."""
        nonlocal interrupts
        interrupts += number == signal.SIGINT
        ranks = _ranks_below(process.pid)
        if interrupts > 1:  # who asks again does not want to wait for a checkpoint
            os.killpg(process.pid, signal.SIGKILL)
        elif ranks:
            for rank in ranks:
                with suppress(ProcessLookupError):
                    os.kill(rank, signal.SIGTERM if number == signal.SIGHUP else number)
        else:
            process.terminate()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            signal.signal(number, pass_on)
    code = process.wait()
    return code if code >= 0 else 128 - code


def _ranks_below(launcher: int) -> list[int]:
    """Process ids of the ranks that DeepSpeed's launcher has started: children of its child ``launch.py``."""
    from mcsp.training.stopping import process_stat

    parents = {int(path.name): process_stat(int(path.name))[0] for path in Path("/proc").glob("[0-9]*")}
    found = []
    for pid, parent in parents.items():
        with suppress(OSError):
            if parents.get(parent) == launcher:
                command = Path(f"/proc/{parent}/cmdline").read_bytes()
                found += [pid] if b"deepspeed.launcher.launch" in command else []
    return found


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
    """The content of evaluate's results.json; ``ValueError`` where there is none, or that of another command."""
    path = folder / "results.json"
    found = read_object(path) if path.is_file() else None
    if found is None or "classification" not in found:
        what = "none" if found is None else "those of another command"
        raise ValueError(f"{path}: expected the results of mcsp evaluate, found {what}")
    return found
