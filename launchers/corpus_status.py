"""Tell how far a build is, from any machine that sees its folder: ``corpus_status.py OUT_DIR [--watch]``."""

import argparse
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime

from mcsp.data_sharding.build.progress import read_status, status_lines
from mcsp.data_sharding.store.files import location

_CLEAR = "\033[H\033[J"  # of a terminal: to the top, and nothing below


def main(argv: Sequence[str] | None = None) -> int:
    """Status 0 after a line per site, 2 after one line where there is no such folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out_dir", metavar="OUT_DIR", help="out_dir of the build, a folder or a URL like s3://...")
    parser.add_argument("--watch", action="store_true", help="again every few seconds, until the build ends")
    parser.add_argument("--interval", type=float, default=5.0, metavar="SECONDS", help="with --watch (default: 5)")
    arguments = parser.parse_args(argv)
    try:
        out = location(arguments.out_dir)
        while True:
            status = read_status(out)
            text = "\n".join(status_lines(out, status, datetime.now(UTC)))
            print(_CLEAR + text if arguments.watch and sys.stdout.isatty() else text, flush=True)
            if not arguments.watch or (status is not None and status["state"] != "running"):
                return 0
            time.sleep(arguments.interval)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    raise SystemExit(main())
