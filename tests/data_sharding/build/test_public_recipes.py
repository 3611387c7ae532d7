"""Recipes for public datasets: parsed, and planned on empty files under names as those datasets have them."""

import re
from pathlib import Path

import pytest

from mcsp.config import CorpusConfig
from mcsp.data_sharding.bids.write import write_json, write_tsv
from mcsp.data_sharding.build.plan import make_plan
from tests.data_sharding.conftest import DESCRIPTION, KEY

FOLDER = Path(__file__).resolve().parents[3] / "configs/corpus/public"
# Recipe -> files of each of its sites, those that are wanted first.
NAMES: dict[str, tuple[list[str], list[str]]] = {
    "hbn-eeg": (
        [
            "sub-NDARAA1/eeg/sub-NDARAA1_task-RestingState_eeg.set",
            "sub-NDARAA1/eeg/sub-NDARAA1_task-ThePresent_eeg.set",
        ],
        ["sub-NDARAA1/eeg/sub-NDARAA1_task-contrastChangeDetection_run-1_eeg.set"],
    ),
    "tuh-eeg": (
        [f"sub-a1/ses-s001/eeg/sub-a1_ses-s001_acq-ar_run-00{i}_task-clinical_eeg.edf" for i in range(3)],
        ["sub-a1/ses-s002/eeg/sub-a1_ses-s002_acq-lea_run-000_task-clinical_eeg.edf"],
    ),
    "openneuro-rest-eeg": (
        ["sub-hc1/ses-hc/eeg/sub-hc1_ses-hc_task-rest_eeg.bdf", "sub-2/eeg/sub-2_task-rest_run-01_eeg.vhdr"],
        ["derivatives/clean/sub-2/eeg/sub-2_task-rest_run-01_eeg.set", "sub-2/beh/sub-2_task-rest_beh.tsv"],
    ),
}


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_recipe_is_planned_as_it_says(tmp_path: Path, name: str) -> None:
    file = FOLDER / f"{name}.yaml"
    text = file.read_text(encoding="utf-8")
    for fact in ("accession", "licence", "expected size", "not run here"):
        assert re.search(rf"^#   {fact}: +\S", text, re.MULTILINE), fact
    config = CorpusConfig.load(file)
    wanted, others = NAMES[name]
    sites = {}
    for site, values in config.sites.items():
        root = tmp_path / site
        write_json(root / "dataset_description.json", DESCRIPTION)
        write_tsv(root / "participants.tsv", ("participant_id", "sex"), [("sub-NDARAA1", "F"), ("sub-2", "M")])
        for path in (*wanted, *others):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).touch()
        sites[site] = values.model_copy(update={"path": root})
    plan = make_plan(config.model_copy(update={"sites": sites, "out_dir": tmp_path / "out"}), KEY.encode())
    planned = {site: set[str]() for site in sites}
    for shard in plan.shards:
        for sample in shard.samples:
            planned[sample.site.name] |= {ref.file for ref in sample.recordings}
    assert planned == {site: set(wanted) for site in sites}
