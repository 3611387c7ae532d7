"""Saving while the next steps run: each rank copies its state, a thread of it writes the copy, and when all have
written, one of rank 0 turns the folder into a checkpoint.

A process that is killed at any moment leaves what it would leave without threads: a checkpoint, or a folder that is not
one. Between two steps the ranks ask each other whether all are done, with one number, and only while a save is under
way.
"""

import copy
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from mcsp import distributed
from mcsp.outside import sha256_file
from mcsp.training.saving import checkpoint
from mcsp.training.saving.state import Copied, write_ranges, write_state
from mcsp.training.stopping import EXIT_DISK, RunEnded

Write = Callable[[Path, int, Copied], Path]


class Saver:
    """Writes the checkpoints of a run; every rank has one and calls the same methods."""

    def __init__(
        self,
        run_dir: Path,
        keep: int,
        keep_every: int = 0,
        device: torch.device | None = None,
        finished: Callable[[Path], None] | None = None,
        write: Write = write_state,
    ) -> None:
        """
        Args:
            run_dir: of the run.
            keep: the newest of this many stay.
            keep_every: those after a multiple of this many steps stay, too; 0: none.
            device: on which ranks tell each other numbers.
            finished: is told the path of each new checkpoint, on rank 0, in a thread.
            write: writes a rank's part.
        """
        self.run_dir, self.keep, self.keep_every = run_dir, keep, keep_every
        self.device, self.finished, self.write = device or torch.device("cpu"), finished, write
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="saver")
        self._path: Path | None = None  # of the checkpoint under way
        self._facts: dict[str, Any] = {}
        self._retire = True
        self._written: Future[tuple[str, str, str]] | None = None  # problem, file and digest of this rank
        self._sealed: Future[str] | None = None  # problem
        self._copied: Copied | None = None

    def begin(self, step: int, facts: dict[str, Any], copied: Copied, retire: bool = True) -> None:
        """Start to save the state after ``step`` optimizer steps; the save before ends first.

        ``facts`` enter the manifest (config, index hash ...). Unless ``retire`` all older checkpoints stay. Errors are
        those of :meth:`settle`.
        """
        self.finish()
        path = checkpoint.checkpoint_path(self.run_dir, step)
        self._path, self._facts, self._retire = path, copy.deepcopy({**facts, "step": step}), retire
        self._copied = copied._replace(values={})
        self._written = self._thread.submit(self._write_own, path, distributed.rank(), copied)

    def settle(self) -> None:
        """Between two steps: take the save under way further where all ranks are done with their part.

        Raises:
            RunEnded: some rank could not write, in one line; earlier checkpoints are as they were.
        """
        part = self._sealed or self._written
        if part is None:
            return
        unfinished = torch.tensor([float(not part.done())], device=self.device)
        if float(distributed.over_ranks(unfinished, "max")) == 0:
            self._advance()

    def finish(self) -> None:
        """Wait until the save under way is a checkpoint; errors as of :meth:`settle`."""
        while self._written is not None:
            self._advance()

    def _advance(self) -> None:
        """The next part; waits for all ranks' share of this one."""
        assert self._written is not None and self._path is not None and self._copied is not None
        path, main = self._path, distributed.is_main()
        if self._sealed is None:
            problem, file, digest = self._written.result()
            parts = distributed.gather_objects((problem, file, digest, self._copied))
            problem = next((found for found, *_ in parts if found), "")
            self._sealed = Future()
            if main and not problem:
                self._sealed = self._thread.submit(self._seal, path, parts)
            else:
                self._sealed.set_result(problem)
        else:
            problem = distributed.gather_objects(self._sealed.result())[0]
            self._written = self._sealed = self._copied = None
        if problem:
            self._written = self._sealed = None
            if main:
                shutil.rmtree(checkpoint.aside(path), ignore_errors=True)  # a full disk gets its space back
            raise RunEnded("cannot save", f"{path}: {problem}; earlier checkpoints are kept", EXIT_DISK)

    def _write_own(self, path: Path, rank: int, copied: Copied) -> tuple[str, str, str]:
        if not copied.ranges and rank:
            return "", "", ""  # at stage 0 the first rank has everything: no file to force to disk
        try:
            file = self.write(checkpoint.aside(path), rank, copied)
            checkpoint.sync(file)
            return "", file.name, sha256_file(file)
        except (OSError, SafetensorError) as error:
            return _in_words(error), "", ""

    def _seal(self, path: Path, parts: list[tuple[str, str, str, Copied]]) -> str:
        folder, parts = checkpoint.aside(path), [part for part in parts if part[1]]
        try:
            ranges = write_ranges(folder, [(file, copied) for _, file, _, copied in parts])
            checkpoint.sync(ranges)
            digests = {f"{ranges.parent.name}/{file}": digest for _, file, digest, _ in parts}
            digests[f"{ranges.parent.name}/{ranges.name}"] = sha256_file(ranges)
            checkpoint.seal(path, self._facts, digests)
            keep = self.keep if self._retire else len(checkpoint.complete(self.run_dir))
            checkpoint.retire(self.run_dir, self._facts["step"], keep, self.keep_every)
        except OSError as error:
            return _in_words(error)
        if self.finished:
            self.finished(path)
        return ""


def _in_words(error: Exception) -> str:
    return " ".join(str(error).split())
