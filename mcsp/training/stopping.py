"""Asked to stop: SIGTERM and SIGUSR1 end a run after the step it is in, with a checkpoint.

Batch systems send one of them before they take a machine away. The handler only sets a flag: anything more, even
printing, could break a save that is under way. The loop sums the flag over ranks: a signal to any one stops all.
"""

import json
import os
import signal
import threading
from pathlib import Path
from types import FrameType

GRACE_SECONDS = 120.0  # a rank that waits for a dead one never gets to the end of its step


class StopRequest:
    """The flag of this process, and the handlers that set it."""

    def __init__(self) -> None:
        self.number = 0
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.number:
            self.number = number
            timer = threading.Timer(GRACE_SECONDS, os._exit, (1,))
            timer.daemon = True
            timer.start()


def write_exit(run_dir: Path, reason: str, step: int) -> None:
    """Say in ``exit.json`` why the run ended and after which step; launchers do not keep return codes apart."""
    (run_dir / "exit.json").write_text(json.dumps({"reason": reason, "step": step}) + "\n")
