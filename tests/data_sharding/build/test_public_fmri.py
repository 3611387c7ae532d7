"""Recipes for public sets of fMRI: parsed, and planned on empty files under the names of the pipeline of each."""

import re
from pathlib import Path

import pytest

from mcsp.config import CorpusConfig
from mcsp.config.corpus import SiteConfig
from mcsp.data_sharding.bids.write import write_json, write_tsv
from mcsp.data_sharding.build.plan import make_plan
from mcsp.data_sharding.parcels.atlases import is_named
from tests.data_sharding.conftest import DESCRIPTION, KEY

FOLDER = Path(__file__).resolve().parents[3] / "configs/corpus/public"
FMRIPREP = "sub-1_task-{}_space-MNI152NLin6Asym_res-2_desc-preproc_bold.nii.gz"
# Recipe -> files of each of its sites: those that are wanted, and others.
NAMES: dict[str, tuple[list[str], list[str]]] = {
    "abide": (["sub-50551/func/sub-50551_task-rest_seg-CC200_stat-mean_timeseries.tsv"], ["seg-CC200_dseg.tsv"]),
    "adhd200": (
        [f"derivatives/fmriprep/sub-1/func/{FMRIPREP.format('rest')}"],
        ["sub-1/func/sub-1_task-rest_bold.nii.gz", f"derivatives/fmriprep/sub-1/func/{FMRIPREP.format('go')}"],
    ),
    "openneuro-rest-fmriprep": (
        [f"sub-1/func/{FMRIPREP.format('rest')}"],
        [
            f"sub-1/func/{FMRIPREP.format('stopsignal')}",
            "sub-1/func/sub-1_task-rest_space-T1w_desc-preproc_bold.nii.gz",
            "sub-1/func/sub-1_task-rest_desc-confounds_timeseries.tsv",
        ],
    ),
}


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_recipe_of_fmri_is_planned_as_it_says(tmp_path: Path, name: str) -> None:
    file = FOLDER / f"{name}.yaml"
    for fact in ("accession", "licence", "expected size", "not run here"):
        assert re.search(rf"^#   {fact}: +\S", file.read_text(encoding="utf-8"), re.MULTILINE), fact
    config = CorpusConfig.load(file)
    assert config.fmri.atlas is None or is_named(config.fmri.atlas)
    given = config.sites or {"Yale": SiteConfig(path=Path("Yale"))}
    wanted, others = NAMES[name]
    sites = {}
    for site, values in given.items():
        root = tmp_path / site
        write_json(root / "dataset_description.json", DESCRIPTION)
        columns = config.participants_columns
        write_tsv(root / "participants.tsv", ("participant_id", *columns), [("sub-1", *("a" for _ in columns))])
        for path in (*wanted, *others):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).touch()
        sites[site] = values.model_copy(update={"path": root})
    plan = make_plan(config.model_copy(update={"sites": sites, "out_dir": tmp_path / "out"}), KEY.encode())
    planned = {(s.site.name, ref.file) for shard in plan.shards for s in shard.samples for ref in s.recordings}
    assert planned == {(site, path) for site in sites for path in wanted}
