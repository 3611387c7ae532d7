"""Turn BIDS datasets into a corpus: ``build_corpus.py --config configs/corpus/demo.yaml bids_root=DIR out_dir=DIR``.

Runs Ray on this machine, or on a cluster with ``--address`` or inside ``ray job submit``.
"""

import sys
from collections.abc import Sequence

from mcsp.config import CorpusConfig, parse_command_line
from mcsp.data_sharding.inspect.report import index_table


def main(argv: Sequence[str] | None = None) -> int:
    """Build, and print what was found, stored and rejected per site.

    Status 2 and one line on bad input, 1 where more recordings are bad than ``max_quarantined`` allows.
    """
    config, arguments = parse_command_line(CorpusConfig, "Build a corpus from BIDS datasets.", argv, address=True)
    # Ray, MNE and nilearn take seconds to import; a mistake in the configuration is told before.
    from mcsp.data_sharding.build.corpus import build_corpus
    from mcsp.data_sharding.build.seal import TooManyQuarantinedError

    try:
        index, was_there = build_corpus(config, arguments.address)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, TooManyQuarantinedError) else 2
    print(index_table(index))
    print(f"{'already complete' if was_there else 'corpus'}: {config.out_dir} (index hash {index['index_hash'][:12]})")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
