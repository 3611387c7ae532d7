"""ABIDE as the Preprocessed Connectomes Project publishes it: files of nilearn's fetcher -> BIDS per site -> corpus.

python examples/abide.py OUT_DIR [--abide DIR] [--derivative rois_cc200] [--strategy filt_global] [--atlas NAME_OR_FILE]

Without --abide, nilearn downloads the derivative into its data folder; with it, DIR/ABIDE_pcp is taken as nilearn lays
it out. --atlas names and places the parcels: an atlas that nilearn fetches (default: the derivative's own, where it
does), the label image of the Preprocessed Connectomes Project, or a table with name, x, y, z. Writes OUT_DIR/bids and
OUT_DIR/corpus. MCSP_SUBJECT_KEY must be set (openssl rand -hex 32). Terms of the data: CC BY-NC-SA 3.0; cite
Di Martino et al. 2014 (Mol Psychiatry 19:659) and Craddock et al. 2013 (Preprocessed Connectomes Project).
"""

import argparse
import sys
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import pandas as pd

from mcsp.config import CorpusConfig
from mcsp.data_sharding.build.corpus import build_corpus, ray_session
from mcsp.data_sharding.convert.to_bids import check_rows, find_atlas, plan_sites, write_site
from mcsp.data_sharding.inspect.report import index_table
from mcsp.wording import listed

# Repetition times [s] by SITE_ID, of the scan parameters that the sites published with ABIDE-I.
T_R = {
    "CALTECH": 2.0, "CMU": 2.0, "KKI": 2.5, "LEUVEN_1": 1.656, "LEUVEN_2": 1.667, "MAX_MUN": 3.0, "NYU": 2.0,
    "OHSU": 2.5, "OLIN": 1.5, "PITT": 1.5, "SBL": 2.2, "SDSU": 2.0, "STANFORD": 2.0, "TRINITY": 2.0, "UCLA_1": 3.0,
    "UCLA_2": 3.0, "UM_1": 2.0, "UM_2": 2.0, "USM": 2.0, "YALE": 2.0,
}  # fmt: skip
ATLAS_OF = {"rois_cc200": "CC200", "rois_cc400": "CC400", "rois_aal": "AAL", "rois_dosenbach160": "Dosenbach2010"}
PHENOTYPE = "Phenotypic_V1_0b_preprocessed1.csv"


def fetch(derivative: str, strategy: str) -> Path:
    """Download what is not there yet; the folder of nilearn that holds ABIDE_pcp."""
    from nilearn.datasets import fetch_abide_pcp

    fetch_abide_pcp(
        pipeline="cpac",
        band_pass_filtering=strategy.startswith("filt"),
        global_signal_regression=strategy.endswith("_global"),
        derivatives=[derivative],
        quality_checked=False,
    )
    from nilearn.datasets import get_data_dirs

    return next(Path(folder) for folder in get_data_dirs() if (Path(folder) / "ABIDE_pcp").is_dir())


def manifest(abide: Path, derivative: str, strategy: str) -> list[dict[str, str]]:
    """A row per person whose series is there, with diagnosis, age and sex."""
    table: list[dict[Hashable, Any]] = pd.read_csv(abide / PHENOTYPE, dtype=str).to_dict("records")
    people = {row["FILE_ID"]: row for row in table}  # of those without a series only the last, which nobody asks for
    files = sorted((abide / "cpac" / strategy).glob(f"*_{derivative}.1D"))
    rows, unknown = [], []
    for file in files:
        name = file.name.removesuffix(f"_{derivative}.1D")
        if name not in people:
            unknown.append(name)
            continue
        person = people[name]
        rows.append(
            {
                "path": str(file),
                "subject": person["SUB_ID"],
                "site": name.rpartition("_")[0],  # the site, or one of its scanners
                "t_r": str(T_R[person["SITE_ID"]]),
                "diagnosis": {"1": "autism", "2": "control"}[person["DX_GROUP"]],
                "age": person["AGE_AT_SCAN"],
                "sex": {"1": "M", "2": "F"}[person["SEX"]],
            }
        )
    if unknown:
        print(f"warning: left out, in no row of {PHENOTYPE}: {listed(unknown)}", file=sys.stderr)
    if not rows:
        raise ValueError(
            f"{abide / 'cpac' / strategy}: no *_{derivative}.1D, expected those of nilearn's fetch_abide_pcp"
        )
    return rows


def main() -> int:
    """Write the datasets and the corpus; print the table of sites."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out_dir", type=Path, metavar="OUT_DIR")
    parser.add_argument("--abide", type=Path, metavar="DIR", help="folder with ABIDE_pcp; default: download")
    parser.add_argument("--derivative", default="rois_cc200", help="that nilearn knows (default: rois_cc200)")
    parser.add_argument("--strategy", default="filt_global", help="filt_global, filt_noglobal, nofilt_global ...")
    parser.add_argument("--atlas", help="name or file; default: that of the derivative, from nilearn")
    parser.add_argument("--workers", type=int, help="processor cores (default: all)")
    arguments = parser.parse_args()
    try:
        folder = arguments.abide or fetch(arguments.derivative, arguments.strategy)
        atlas = find_atlas(arguments.atlas or ATLAS_OF.get(arguments.derivative))
        if atlas is None:
            raise ValueError(f"{arguments.derivative}: say its --atlas, one of the project's *_roi_atlas.nii.gz")
        rows = manifest(folder / "ABIDE_pcp", arguments.derivative, arguments.strategy)
        for plan in plan_sites(check_rows(rows, Path(), "manifest")):
            write_site(plan, arguments.out_dir / "bids", atlas)
        config = CorpusConfig(
            bids_root=arguments.out_dir / "bids",
            out_dir=arguments.out_dir / "corpus",
            participants_columns=["diagnosis", "age", "sex"],
            workers=arguments.workers,
        )
        with ray_session(arguments.workers):
            index, _ = build_corpus(config)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(index_table(index))
    return 0


if __name__ == "__main__":
    sys.exit(main())
