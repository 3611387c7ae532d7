"""The launcher of a rank that dies by SIGKILL as it asks the system for a given change below its checkpoints."""

import os
import signal
import sys
from typing import Any

sys.path.insert(0, os.getcwd())


def main(rank: str, event: str, *arguments: str) -> None:
    count, where = 0, "/checkpoints/"

    def hook(name: str, values: tuple[Any, ...]) -> None:
        nonlocal count
        if name in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir") and where in str(values[0]):
            count += 1
            if count == int(event):
                os.kill(os.getpid(), signal.SIGKILL)

    sys.argv = ["pretrain.py", *arguments]
    if os.environ["RANK"] == rank:
        sys.addaudithook(hook)
    from launchers.pretrain import main as launch

    launch()


if __name__ == "__main__":
    main(*sys.argv[1:])
