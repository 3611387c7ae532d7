"""BOLD cleaning on files: percent, t_r, parcels."""

from pathlib import Path

import nibabel
import numpy as np
import pytest

from mcsp.config import FmriConfig
from mcsp.data_sharding.bids.find import find_recordings
from mcsp.data_sharding.bids.reasons import RecordingError
from mcsp.data_sharding.bids.ref import RecordingRef, Site
from mcsp.data_sharding.bids.write import write_json, write_parcellated_bold, write_parcellation, write_tsv
from mcsp.data_sharding.clean import fmri
from mcsp.data_sharding.clean.fmri import (
    Confounds,
    clean_bold,
    detrend,
    in_unit,
    plausible_t_r,
    read_fmri,
    repetition_time,
)
from mcsp.data_sharding.clean.recording import CleanRecording
from mcsp.data_sharding.parcels.parcellation import Parcels

T_R = 1.35


def fluctuation(parcels: int, volumes: int = 80) -> np.ndarray:
    """Percent, zero mean and without a line; (P, T)."""
    x_PT = np.random.default_rng(1).standard_normal((parcels, volumes))
    return detrend(x_PT.T).T


def read(root: Path, config: FmriConfig | None = None) -> CleanRecording:
    return read_fmri(only_ref(root), config or FmriConfig(), min_seconds=30)


def write_places(root: Path, names: str) -> None:
    write_parcellation(root, "S", list(names), np.random.default_rng(2).uniform(-60, 60, (len(names), 3)))


def only_ref(root: Path) -> RecordingRef:
    (ref,) = find_recordings(Site("site", root, False, None))
    return ref


def test_a_table_becomes_percent_of_each_parcels_mean_without_its_drift(tmp_path: Path) -> None:
    percent_PT = fluctuation(3)
    drift = np.linspace(-2, 2, percent_PT.shape[1])
    means = np.array([[9000.0], [400.0], [12_000.0]])
    x_PT = means * (1 + (percent_PT + drift) / 100)
    write_parcellated_bold(tmp_path, "1", "S", ["a", "b", "c"], x_PT, {"RepetitionTime": T_R})
    places = np.array([[10.0, 20, 30], [np.nan] * 3, [40, 50, 60]])
    write_parcellation(tmp_path, "S", ["c", "b", "a"], places)
    recording = read(tmp_path)
    assert recording.sfreq == 1 / T_R
    assert recording.channels == ["c", "b", "a"]
    np.testing.assert_array_equal(recording.positions_C3, places)
    np.testing.assert_allclose(recording.x_TC.T, percent_PT[::-1], atol=2e-3)
    kept = read(tmp_path, FmriConfig(detrend=False))
    np.testing.assert_allclose(kept.x_TC.T, percent_PT[::-1] + drift, atol=2e-3)


def test_bad_parcels_are_marked_and_zero(tmp_path: Path) -> None:
    x_PT = 1000 * (1 + fluctuation(7) / 100)
    x_PT[1] = 0.0
    x_PT[2, 7] = np.nan
    x_PT[3] = -x_PT[3]
    write_parcellated_bold(tmp_path, "1", "S", list("abcdefg"), x_PT, {"RepetitionTime": T_R})
    write_places(tmp_path, "abcdefg")
    recording = read(tmp_path)
    assert recording.channel_good_C.tolist() == [True, False, False, False, True, True, True]
    assert not recording.x_TC[:, 1:4].any()


def test_values_that_are_percent_already_keep_their_amplitude(tmp_path: Path) -> None:
    percent_PT = fluctuation(2)
    write_parcellated_bold(tmp_path, "1", "S", ["a", "b"], percent_PT, {"RepetitionTime": T_R, "Units": "percent"})
    write_places(tmp_path, "ab")
    np.testing.assert_allclose(read(tmp_path).x_TC.T, percent_PT, atol=1e-3)


@pytest.mark.parametrize(
    ("sidecar", "reason"),
    [({}, "missing-t_r"), ({"RepetitionTime": "2"}, "missing-t_r"), ({"RepetitionTime": 0}, "missing-t_r"),
     ({"RepetitionTime": 2000}, "t_r-mismatch"), ({"SamplingFrequency": 1000}, "t_r-mismatch")],
)  # fmt: skip
def test_t_r_must_be_plausible_seconds(sidecar: dict[str, object], reason: str) -> None:
    with pytest.raises(RecordingError) as error:
        repetition_time(sidecar)
    assert error.value.reason == reason


def test_t_r_may_come_as_a_sampling_frequency() -> None:
    assert repetition_time({"SamplingFrequency": 0.5}) == 2.0


def write_image(root: Path, x_XYZT: np.ndarray, header_t_r: float = T_R, unit: str = "sec") -> None:
    image = nibabel.Nifti1Image(x_XYZT.astype(np.float32), np.diag([3.0, 3, 3, 1]))
    image.header.set_xyzt_units("mm", unit)
    image.header.set_zooms((3.0, 3.0, 3.0, header_t_r))
    path = root / "sub-1/func/sub-1_task-rest_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)
    write_json(root / "task-rest_bold.json", {"RepetitionTime": T_R})


def write_labels(root: Path) -> np.ndarray:
    labels = np.zeros((6, 4, 4), dtype=np.int16)
    labels[:2], labels[3:] = 3, 8
    nibabel.save(nibabel.Nifti1Image(labels, np.diag([3.0, 3, 3, 1])), root / "seg-S_dseg.nii.gz")
    return labels


def test_an_image_becomes_the_mean_of_each_label(tmp_path: Path) -> None:
    x_XYZT = 800 * (1 + 0.02 * np.random.default_rng(0).standard_normal((6, 4, 4, 40)))
    write_image(tmp_path, x_XYZT)
    labels = write_labels(tmp_path)
    write_tsv(
        tmp_path / "seg-S_dseg.tsv", ("index", "name", "x", "y", "z"), [(8, "back", 10, 20, 30), (9, "absent", 0, 0, 0)]
    )
    recording = read(tmp_path)
    assert recording.channels == ["S-3", "back", "absent"]
    assert recording.channel_good_C.tolist() == [True, True, False]
    np.testing.assert_allclose(recording.positions_C3, [[1.5, 4.5, 4.5], [10, 20, 30], [0, 0, 0]])
    for column, label in enumerate((3, 8)):
        mean_T = x_XYZT[labels == label].mean(axis=0)
        expected = detrend(100 * (mean_T / mean_T.mean() - 1)[:, None])[:, 0]
        np.testing.assert_allclose(recording.x_TC[:, column], expected, atol=1e-4)


@pytest.mark.parametrize(
    ("header_t_r", "unit", "sound"), [(1350, "msec", True), (1350, "sec", False), (0, "sec", True), (2.0, "sec", False)]
)
def test_the_header_is_checked_against_the_sidecar(tmp_path: Path, header_t_r: float, unit: str, sound: bool) -> None:
    x_XYZT = 800 * (1 + 0.02 * np.random.default_rng(0).standard_normal((6, 4, 4, 40)))
    write_image(tmp_path, x_XYZT, header_t_r, unit)
    write_labels(tmp_path)
    if sound:
        assert read(tmp_path).sfreq == 1 / T_R
    else:
        with pytest.raises(RecordingError, match=r"t_r is 1\.35 s") as error:
            read(tmp_path)
        assert error.value.reason == "t_r-mismatch"


def test_a_label_image_elsewhere_in_space_is_refused(tmp_path: Path) -> None:
    write_image(tmp_path, 800 + np.random.default_rng(0).standard_normal((6, 4, 4, 40)))
    far = np.diag([3.0, 3, 3, 1])
    far[:3, 3] = 500
    nibabel.save(nibabel.Nifti1Image(np.ones((6, 4, 4), np.int16), far), tmp_path / "seg-S_dseg.nii.gz")
    with pytest.raises(RecordingError) as error:
        read(tmp_path)
    assert error.value.reason == "label-space-mismatch"


def cleaned(percent_PT: np.ndarray, steady: int | None = None, min_seconds: float = 30.0, **changes: float):
    """Percent in memory, of which so many volumes are steady."""
    parcels = Parcels([str(i) for i in range(len(percent_PT))], [], np.zeros((len(percent_PT), 3)))
    steady_T = None if steady is None else np.arange(percent_PT.shape[1]) < steady
    config = FmriConfig(**changes)  # type: ignore[arg-type]
    return clean_bold(percent_PT.T, parcels, 2.0, Confounds(steady_T=steady_T), config, min_seconds, True)


def test_amplitudes_at_the_limits_are_those_of_percent(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fmri._AMPLITUDE_PERCENT == (0.01, 20.0)
    found = cleaned(fluctuation(3)).quality["amplitude"]
    monkeypatch.setattr(fmri, "_AMPLITUDE_PERCENT", (found, found))
    cleaned(fluctuation(3))
    for limits in ((np.nextafter(found, 9.0), 20.0), (0.01, np.nextafter(found, 0.0))):
        monkeypatch.setattr(fmri, "_AMPLITUDE_PERCENT", limits)
        with pytest.raises(RecordingError, match="is it percent signal change") as error:
            cleaned(fluctuation(3))
        assert error.value.reason == "wrong-unit"


def test_exactly_the_least_time_outside_of_motion_is_enough() -> None:
    recording = cleaned(fluctuation(3), steady=15)
    assert recording.valid_spans == [0, 15] and not recording.x_TC[15:].any()
    assert recording.quality["artefact_fraction"] == 1 - 15 / 80
    for steady, min_seconds in ((14, 30.0), (1, 1.0)):
        with pytest.raises(RecordingError) as error:
            cleaned(fluctuation(3), steady, min_seconds)
        assert error.value.reason == "motion"


def test_exactly_so_many_parcels_may_be_missing() -> None:
    percent_PT = fluctuation(4)
    percent_PT[:2] = 3.0
    assert cleaned(percent_PT, max_bad_fraction=0.5).quality["bad_channels"] == 2
    percent_PT[2] = 3.0
    with pytest.raises(RecordingError, match="3 of 4 parcels have no signal") as error:
        cleaned(percent_PT, max_bad_fraction=0.74)
    assert error.value.reason == "parcels-missing"


def test_a_mean_is_a_baseline_a_zero_or_neither() -> None:
    """In standard deviations: at least 5 is a baseline, at most 0.5 is none, between them is no BOLD."""
    assert (fmri._MIN_BASELINE, fmri._MAX_CENTRED) == (5.0, 0.5)
    x_T = np.tile([1.0, -1.0], 40)
    for mean, unit in ((5.0, "percent"), (0.5, "a.u."), (-0.5, "a.u.")):
        assert in_unit(np.tile(x_T + mean, (3, 1)).T)[2] == unit
    for mean in (4.999, 0.501, -0.501, -5.0):
        with pytest.raises(RecordingError, match="median mean/deviation") as error:
            in_unit(np.tile(x_T + mean, (3, 1)).T)
        assert error.value.reason == "no-baseline"
    mixed_TP = np.stack([x_T + mean for mean in (9.0, 9.0, 5.0, 4.999)], 1)
    assert in_unit(mixed_TP)[1].tolist() == [True, True, True, False]


def test_t_r_at_the_bounds_is_plausible() -> None:
    assert plausible_t_r(0.05) == 0.05 and plausible_t_r(20.0) == 20.0
    for t_r, told in ((0.0499, ""), (20.01, ""), (49.9, ""), (50.0, " (milliseconds?)"), (2e4, " (milliseconds?)"),
                      (20_001.0, "")):  # fmt: skip
        with pytest.raises(RecordingError) as error:
            plausible_t_r(t_r)
        assert str(error.value) == f"t_r {t_r:g}{told}, expected 0.05 to 20 s"


def test_a_repetition_time_that_is_written_twice_may_be_rounded() -> None:
    """To a fiftieth: 0.33 Hz is 3 s."""
    assert repetition_time({"RepetitionTime": 3.0, "SamplingFrequency": 0.33}) == 3.0
    assert repetition_time({"RepetitionTime": 2.0, "SamplingFrequency": 1 / 2.0399}) == 2.0
    assert repetition_time({"RepetitionTime": 2.0399, "SamplingFrequency": 0.5}) == 2.0399
    for other in (2.0401, 1.9607):
        with pytest.raises(RecordingError, match="expected one"):
            repetition_time({"RepetitionTime": 2.0, "SamplingFrequency": 1 / other})
    for key in ("RepetitionTime", "SamplingFrequency"):
        with pytest.raises(RecordingError, match="no RepetitionTime"):
            repetition_time({key: True})


def test_exactly_the_least_length_is_enough() -> None:
    fmri.require_length(15, 2.0, 30.0)
    with pytest.raises(RecordingError, match=r"^28\.0 s, expected at least 30 s$") as error:
        fmri.require_length(14, 2.0, 30.0)
    assert error.value.reason == "too-short"


@pytest.mark.parametrize(
    ("sidecar", "percent"), [({"Units": "%"}, True), ({"Units": "Percent"}, True), ({"Units": "a.u."}, False),
                             ({"Units": "percent signal change"}, True), ({}, False)]
)  # fmt: skip
def test_values_are_percent_where_the_sidecar_says_so(sidecar: dict[str, object], percent: bool) -> None:
    assert fmri.in_percent(sidecar) == percent


def test_regressors_are_taken_out_as_by_least_squares_also_where_they_nearly_repeat() -> None:
    rng = np.random.default_rng(4)
    x_TP, one_T, other_T = rng.standard_normal((50, 3)), rng.standard_normal(50), rng.standard_normal(50)
    columns = [one_T, 0 * one_T, one_T, other_T, one_T + 1e-6 * other_T, one_T - 3 * other_T]
    basis_T2 = np.stack([one_T, other_T], axis=1)
    expected_TP = x_TP - basis_T2 @ np.linalg.lstsq(basis_T2, x_TP, rcond=None)[0]
    found_TP = fmri.project_out(x_TP, np.stack(columns, axis=1))
    np.testing.assert_allclose(found_TP, expected_TP, atol=1e-10)
    nearly_T = one_T + 1e-7 * rng.standard_normal(50)  # another direction, however small
    found_TP = fmri.project_out(x_TP, np.stack([one_T, nearly_T], axis=1))
    for column_T in (one_T, (nearly_T - one_T) / 1e-7):
        assert np.abs(column_T @ found_TP).max() < 1e-6 * np.linalg.norm(column_T)
    np.testing.assert_array_equal(fmri.project_out(x_TP, np.empty((50, 0))), x_TP)


def test_volumes_between_those_that_are_kept_are_of_a_cubic_and_those_are_as_they_were() -> None:
    t_T = np.arange(12.0)
    cubic_TP = np.stack([t_T**3 - 5 * t_T**2, 2 * t_T], axis=1)
    kept_T = np.isin(np.arange(12), [2, 3, 5, 6, 9, 10])
    np.testing.assert_allclose(fmri.evenly(cubic_TP[kept_T], kept_T), cubic_TP[2:11], atol=1e-9)
    noise_KP = np.random.default_rng(0).standard_normal((6, 2))
    np.testing.assert_array_equal(fmri.evenly(noise_KP, kept_T)[[0, 1, 3, 4, 7, 8]], noise_KP)


@pytest.mark.parametrize("lost", [0.0, np.nan])
def test_a_volume_is_empty_where_all_of_its_parcels_are(lost: float) -> None:
    percent_PT = fluctuation(3)
    percent_PT[:, [0, 7]] = lost
    percent_PT[0, 20] = 0.0  # one parcel of three
    found = cleaned(percent_PT)
    assert found.valid_spans == [1, 7, 8, 80] and found.channel_good_C.all()


def test_a_repetition_time_that_is_said_twice_must_agree(tmp_path: Path) -> None:
    assert repetition_time({"RepetitionTime": 2.0, "SamplingFrequency": 0.5}) == 2.0
    with pytest.raises(RecordingError, match="2 s by RepetitionTime of the sidecar and 1 s by SamplingFrequency"):
        repetition_time({"RepetitionTime": 2.0, "SamplingFrequency": 1.0})
    with pytest.raises(RecordingError, match="found 'n/a', expected seconds"):
        repetition_time({"RepetitionTime": "n/a"})
    write_parcellated_bold(tmp_path, "1", "S", ["a", "b"], 1000 + fluctuation(2), {"RepetitionTime": T_R})
    write_json(tmp_path / "sub-1/func/sub-1_task-rest_bold.json", {"RepetitionTime": 0.8})
    with pytest.raises(RecordingError, match=r"0\.8 s by RepetitionTime of an image of the run, expected one"):
        read(tmp_path)


def test_times_of_volumes_stand_for_a_repetition_time_where_they_are_even(tmp_path: Path) -> None:
    even = [1.5 * i for i in range(80)]
    assert repetition_time({"VolumeTiming": even}) == pytest.approx(1.5)
    with pytest.raises(RecordingError, match=r"2 s by RepetitionTime of the sidecar and 1\.5 s by VolumeT") as error:
        repetition_time({"RepetitionTime": 2.0, "VolumeTiming": even})
    assert error.value.reason == "t_r-mismatch"
    sparse = [*even[:40], *(time + 3 for time in even[40:])]
    write_parcellated_bold(tmp_path, "1", "S", ["a", "b"], 1000 + fluctuation(2), {"RepetitionTime": 1.5})
    write_json(tmp_path / "sub-1/func/sub-1_task-rest_bold.json", {"VolumeTiming": sparse})
    with pytest.raises(RecordingError, match=r"follow each other after 1\.5 to 4\.5 s \(VolumeTiming\)") as error:
        read(tmp_path)
    assert error.value.reason == "t_r-mismatch"


def labelled_image(path: Path, x_TP: np.ndarray, dtype: type, header_t_r: float) -> RecordingRef:
    """An image of one voxel for each of three parcels, and its label image."""
    path.parent.mkdir(parents=True)
    affine = np.diag([20.0, 20, 20, 1])
    image = nibabel.Nifti1Image(x_TP.T[:, None, None].astype(dtype), affine)
    image.header.set_xyzt_units("mm", "sec")
    image.header.set_zooms((20, 20, 20, header_t_r))
    nibabel.save(image, path)
    write_json(path.with_name(path.name.replace(".nii.gz", ".json")), {"RepetitionTime": T_R})
    root = path.parents[2]
    labels = nibabel.Nifti1Image(np.array([1, 2, 3], np.int16)[:, None, None], affine)
    nibabel.save(labels, root / "space-MNI152NLin6Asym_seg-S_dseg.nii.gz")
    return only_ref(root)


IMAGE = "sub-1/func/sub-1_task-rest_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz"


def test_one_second_in_a_header_is_what_pipelines_write_unasked(tmp_path: Path) -> None:
    """Releases of fMRIPrep and xcp_d write it whatever the run has; the sidecar counts, and the report says so."""
    ref = labelled_image(tmp_path / IMAGE, 1000 * (1 + fluctuation(3).T / 100), np.float64, 1.0)
    recording = read_fmri(ref, FmriConfig(), 30)
    assert recording.sfreq == 1 / T_R
    assert recording.repairs == (f"{ref.path.name}: 1 s in the image header is not used, t_r is {T_R:g} s",)
    np.testing.assert_allclose(recording.x_TC.T, fluctuation(3), atol=2e-3)


@pytest.mark.parametrize(("mean", "sound"), [(20_000, True), (32_700, False)])
def test_voxels_that_ran_over_the_range_of_their_integers(tmp_path: Path, mean: float, sound: bool) -> None:
    x_TP = np.round(mean * (1 + fluctuation(3).T / 100))
    wrapped_TP = (x_TP + 2**15) % 2**16 - 2**15
    ref = labelled_image(tmp_path / IMAGE, wrapped_TP, np.int16, T_R)
    if sound:
        np.testing.assert_allclose(read_fmri(ref, FmriConfig(), 30).x_TC.T, fluctuation(3), atol=2e-2)
        return
    with pytest.raises(RecordingError, match="voxels jump from one end of int16 to the other") as error:
        read_fmri(ref, FmriConfig(), 30)
    assert error.value.reason == "clipped"
