"""One rank of the test of long waits for a mirror: uploads and fetches take longer than a rank may hang."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import torch

from mcsp import distributed
from mcsp.config import PretrainConfig
from mcsp.training import stopping, trainer
from mcsp.training.reading.loader import StepDataset
from mcsp.training.run import pretrain
from mcsp.training.saving.mirror import Mirror, restore
from mcsp.training.watchdog import Watchdog

ALLOWED, SLOW = 10.0, 25.0  # seconds that a rank may hang, and that the mirror takes


class Hurried(StepDataset):
    """From the third step on nobody may hang for long; rank 1 is asked to stop in it."""

    stop = False

    def __getitem__(self, step: int):
        if step == 2:
            stopping.GRACE_SECONDS = ALLOWED
            for thread in threading.enumerate():
                if isinstance(thread, Watchdog):
                    thread.seconds, thread.interval = ALLOWED, ALLOWED / 10
        if step == 2 and self.stop and distributed.rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().__getitem__(step)


def main(kind: str, *overrides: str) -> None:
    torch.set_num_threads(1)
    upload = Mirror._upload

    def slow_upload(self: Mirror, path: Path, name: str) -> None:
        time.sleep(SLOW)
        upload(self, path, name)

    def slow_restore(*arguments: object) -> None:
        time.sleep(2 * SLOW)
        restore(*arguments)  # type: ignore[arg-type]

    Mirror._upload = slow_upload  # type: ignore[method-assign]
    Hurried.stop = kind == "stopped"
    if kind == "fetched":
        trainer.restore = slow_restore  # type: ignore[attr-defined]
    trainer.StepDataset = Hurried  # type: ignore[attr-defined]
    stopping.leave(pretrain(PretrainConfig.load(None, list(overrides))))


if __name__ == "__main__":
    main(*sys.argv[1:])
