"""Turn a table of files into BIDS derivatives: ``write_bids.py MANIFEST OUT_DIR --atlas NAME_OR_FILE [--dry-run]``.

MANIFEST (.tsv or .csv) has a row per recording: path, subject, t_r [s] (or sampling_rate [Hz], for EEG), and where
there are any session, site, task, run, space, units (percent), line_hz; TR, RepetitionTime, participant_id, SUB_ID and
other usual names are known in any case. Every other column is a label of the person.
Tables of time series (.tsv, .csv, .1D, .txt, .npy; a column per parcel), .ptseries.nii, images and EEG of one file are
taken in; each site becomes a dataset below OUT_DIR, ready for build_corpus.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mcsp.data_sharding.convert.manifest import read_manifest
from mcsp.data_sharding.convert.to_bids import check_site, find_atlas, plan_sites, write_site


def main(argv: Sequence[str] | None = None) -> int:
    """Status 0 where all is written, or would be; 2 after one line per fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path, metavar="MANIFEST")
    parser.add_argument("out_dir", type=Path, metavar="OUT_DIR", help="the sites become folders below it")
    parser.add_argument("--atlas", help="of the columns: a name that nilearn fetches, a label image, or a *_dseg.tsv")
    parser.add_argument("--space", default="", help="standard space of a label image whose name does not say it")
    parser.add_argument("--dry-run", action="store_true", help="read everything, tell what would be written")
    arguments = parser.parse_args(argv)
    try:
        atlas = find_atlas(arguments.atlas, arguments.space)
        plans = plan_sites(read_manifest(arguments.manifest))
        faults = [f"{plan.name}: {fault}" for plan in plans for fault in check_site(plan, atlas)]
        for fault in faults:
            print(f"error: {fault}", file=sys.stderr)
        if faults:
            return 2
        for plan in plans:
            root = arguments.out_dir / plan.name
            what = (
                f"{len(plan.rows)} recordings of {len(plan.labels)} people, columns {', '.join(plan.columns) or 'none'}"
            )
            if arguments.dry_run:
                print(f"{root}: would hold {what}")
            else:
                print(f"{root}: {'written' if write_site(plan, arguments.out_dir, atlas) else 'there already'}, {what}")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
