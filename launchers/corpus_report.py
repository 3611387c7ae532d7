"""Write report.html of a finished corpus anew: ``corpus_report.py DIR``; the build writes it too."""

import argparse
import sys
from collections.abc import Sequence

from mcsp.data_sharding.inspect.report import write_report
from mcsp.data_sharding.store.files import location


def main(argv: Sequence[str] | None = None) -> int:
    """Status 0 and the file's name, or 2 after one line where there is no readable corpus."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "corpus_dir", metavar="DIR", help="a corpus that build_corpus wrote, a folder or a URL like s3://..."
    )
    arguments = parser.parse_args(argv)
    try:
        print(write_report(location(arguments.corpus_dir)))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
