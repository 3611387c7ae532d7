"""The pipeline file in MOABB's own evaluation on its fake dataset."""

import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("moabb.evaluations", reason="the extra ecosystem is not installed")

from moabb.datasets.fake import FakeDataset
from moabb.evaluations import WithinSessionEvaluation
from moabb.paradigms import LeftRightImagery
from moabb.pipelines.utils import parse_pipelines_from_directory

from mcsp.adapters.moabb import TrialFeatures

pytestmark = pytest.mark.filterwarnings("default")  # MOABB's own
PIPELINES = Path(__file__).resolve().parents[2] / "configs" / "moabb"


def test_the_pipeline_file_runs_in_moabbs_evaluation(export_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(PIPELINES, tmp_path / "pipelines")  # MOABB puts a lock beside each file
    (found,) = parse_pipelines_from_directory(str(tmp_path / "pipelines"))
    pipeline = found["pipeline"].set_params(trialfeatures__model_dir=str(export_dir), trialfeatures__line_hz=50.0)
    dataset = FakeDataset(
        event_list=("left_hand", "right_hand"), n_sessions=1, n_runs=1, n_subjects=1, n_events=20, duration=70,
        channels=("C3", "Cz", "C4", "Fz", "Pz"), seed=1,
    )  # fmt: skip
    evaluation = WithinSessionEvaluation(
        paradigm=LeftRightImagery(fmin=1, fmax=40), datasets=[dataset], return_epochs=True, overwrite=True,
        hdf5_path=str(tmp_path), random_state=1, n_jobs=1,
    )  # fmt: skip
    results = evaluation.process({found["name"]: pipeline})
    assert len(results) == 1 and 0 <= results["score"].iloc[0] <= 1
    assert results["samples"].iloc[0] == 20


def test_an_array_has_neither_names_nor_rate(export_dir: Path) -> None:
    with pytest.raises(ValueError, match=r"expected mne.Epochs, found an array: .* return_epochs=True"):
        TrialFeatures(export_dir).fit(None).transform(np.zeros((2, 4, 100)))
