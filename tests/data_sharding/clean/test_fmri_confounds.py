"""Confounds of fMRIPrep: motion, volumes that are taken out, and regressors as nilearn has them.

Covers: data_sharding/clean/fmri.py
"""

from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
from nilearn.interfaces.fmriprep import load_confounds
from nilearn.signal import clean

from mcsp.data_sharding.bids.write import write_json
from tests.data_sharding.clean.test_fmri_files import (
    T_R,
    VOLUMES,
    bold_PT,
    expected_TP,
    folder,
    kept_of,
    read,
    reason,
    write_image,
)


def write_confounds(root: Path, rows: int = VOLUMES, non_steady: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(5)
    motion = ("trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z", "csf", "white_matter")
    columns = {
        name + ending: rng.standard_normal(rows)
        for name in motion
        for ending in ("", "_derivative1", "_power2", "_derivative1_power2")
    }
    displacement = np.full(rows, 0.1)
    displacement[[20, 40]] = 1.5
    frame = pd.DataFrame({**columns, "framewise_displacement": displacement, "std_dvars": 1.2})
    frame.loc[0, ["framewise_displacement", "std_dvars"]] = np.nan
    for volume in range(non_steady):
        frame[f"non_steady_state_outlier{volume:02d}"] = (np.arange(rows) == volume).astype(int)
    path = folder(root) / "sub-1_task-rest_desc-confounds_timeseries.tsv"
    frame.to_csv(path, sep="\t", na_rep="n/a", index=False)
    write_json(path.with_suffix(".json"), {name: {"Method": "x"} for name in frame.columns})
    return frame


@pytest.mark.parametrize("first", [0, 4], ids=["", "non-steady"])
@pytest.mark.parametrize("bandpass_hz", [None, [0.01, 0.1]], ids=["", "bandpass"])
@pytest.mark.parametrize("detrend", [True, False], ids=["detrend", ""])
def test_volumes_are_censored_before_the_fit_as_nilearn_does(
    tmp_path: Path, first: int, bandpass_hz: list[float] | None, detrend: bool
) -> None:
    x_PT = bold_PT() + np.linspace(0, 30, VOLUMES)
    x_PT[:, :first] *= np.array([1.4, 1.2, 1.1, 1.05])[:first]
    x_PT[:, [20, 40]] *= 1.3  # the volumes of motion
    path = write_image(tmp_path, x_PT=x_PT)
    write_confounds(tmp_path, non_steady=first)
    strategy = ["motion", "wm_csf", "scrub"]
    frame, kept = load_confounds(str(path), strategy=strategy, demean=True)
    recording = read(tmp_path, confounds=strategy, bandpass_hz=bandpass_hz, detrend=detrend)
    kept = np.setdiff1d(kept, np.arange(first))
    np.testing.assert_array_equal(kept_of(recording), kept)
    # What nilearn reads from the same file, in percent of the mean of the volumes that stay.
    series_TP = nibabel.load(path).get_fdata()[:, 0, 0].T
    percent_TP = 100 * (series_TP / series_TP[kept].mean(axis=0) - 1)
    high, low = bandpass_hz or (None, None)
    expected = clean(
        percent_TP, detrend=detrend, standardize=None, confounds=frame.to_numpy(), t_r=T_R, high_pass=high,
        low_pass=low, sample_mask=kept.copy(), extrapolate=False,
    )  # fmt: skip
    np.testing.assert_allclose(recording.x_TC[kept], expected, atol=1e-4)
    assert not np.delete(recording.x_TC, kept, axis=0).any()
    assert np.abs(recording.x_TC).max() < 6  # percent; 30 and 40 with the excess


def test_volumes_before_the_steady_state_are_taken_out_by_default(tmp_path: Path) -> None:
    x_PT = bold_PT()
    x_PT[:, :4] *= np.array([1.4, 1.2, 1.1, 1.05])
    write_image(tmp_path, x_PT=x_PT)
    write_confounds(tmp_path, non_steady=4)
    recording = read(tmp_path)
    assert recording.valid_spans == [4, VOLUMES]
    np.testing.assert_allclose(recording.x_TC[4:], expected_TP(bold_PT()[:, 4:]), atol=1e-3)


def test_motion_goes_into_the_quality_and_on_request_out_of_the_valid_spans(tmp_path: Path) -> None:
    write_image(tmp_path)
    frame = write_confounds(tmp_path)
    recording = read(tmp_path)
    assert recording.valid_spans == [0, VOLUMES]
    assert recording.quality["mean_fd_mm"] == pytest.approx(frame["framewise_displacement"].mean(), abs=1e-6)
    assert recording.quality["max_fd_mm"] == 1.5 and recording.quality["mean_dvars"] == pytest.approx(1.2)
    assert read(tmp_path, max_fd_mm=0.5).valid_spans == [0, 20, 21, 40, 41, VOLUMES]
    assert reason(tmp_path, max_fd_mm=0.05) == "motion"


def test_confounds_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    write_image(tmp_path)
    assert reason(tmp_path, confounds=["motion"]) == "missing-confounds"
    write_confounds(tmp_path, rows=VOLUMES - 1)
    assert reason(tmp_path) == "confounds-mismatch"
    frame = write_confounds(tmp_path)
    path = folder(tmp_path) / "sub-1_task-rest_desc-confounds_timeseries.tsv"
    frame.drop(columns="trans_x").to_csv(path, sep="\t", na_rep="n/a", index=False)
    assert reason(tmp_path, confounds=["motion"]) == "missing-confounds"


def save(root: Path, frame: pd.DataFrame) -> Path:
    """In place of what :func:`write_confounds` wrote."""
    path = folder(root) / "sub-1_task-rest_desc-confounds_timeseries.tsv"
    frame.to_csv(path, sep="\t", na_rep="n/a", index=False)
    return path


def test_numbers_of_motion_are_rounded_to_the_nanometre_and_a_volume_at_the_limit_stays(tmp_path: Path) -> None:
    write_image(tmp_path)
    frame = write_confounds(tmp_path)
    frame["framewise_displacement"] = [np.nan, *np.linspace(0.1, 0.5, VOLUMES - 1)]
    frame["std_dvars"] = [np.nan, *np.linspace(1.0, 2.0, VOLUMES - 1) ** 2]
    frame["std_dvars"] = frame["std_dvars"].astype(str)
    frame.loc[5, "std_dvars"] = "none"
    frame.to_csv(
        folder(tmp_path) / "sub-1_task-rest_desc-confounds_timeseries.tsv", sep="\t", na_rep="n/a", index=False
    )
    quality = read(tmp_path, max_fd_mm=0.5).quality
    dvars_T = np.delete(np.linspace(1.0, 2.0, VOLUMES - 1) ** 2, 4)
    assert quality["mean_dvars"] == round(dvars_T.mean(), 6) != round(dvars_T.mean(), 5)
    assert (quality["mean_fd_mm"], quality["max_fd_mm"]) == (0.3, 0.5)
    assert read(tmp_path, max_fd_mm=0.5).valid_spans == [0, VOLUMES]
    assert read(tmp_path, max_fd_mm=0.499).valid_spans == [0, VOLUMES - 1]


def test_a_column_without_any_number_is_as_none(tmp_path: Path) -> None:
    write_image(tmp_path)
    frame = write_confounds(tmp_path)
    frame["framewise_displacement"] = np.nan
    path = save(tmp_path, frame)
    assert "mean_fd_mm" not in read(tmp_path).quality
    assert reason(tmp_path, max_fd_mm=0.5) == "missing-confounds"
    path.unlink()
    assert reason(tmp_path, max_fd_mm=0.5) == "missing-confounds"
    path.write_text("")
    assert reason(tmp_path) == "bad-table"


def test_only_volumes_that_a_column_of_the_steady_state_marks_are_taken_out(tmp_path: Path) -> None:
    write_image(tmp_path)
    frame = write_confounds(tmp_path, non_steady=2)
    frame["non_steady_state_outlier02"] = [0.0] * VOLUMES
    frame.loc[3, "non_steady_state_outlier02"] = 1.0
    save(tmp_path, frame)
    assert read(tmp_path).valid_spans == [2, 3, 4, VOLUMES]
