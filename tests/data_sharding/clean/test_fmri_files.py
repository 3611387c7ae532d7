"""BOLD in every format, confounds of fMRIPrep and damaged files, written by nibabel, pandas and numpy.

Covers: data_sharding/clean/fmri.py, data_sharding/parcels/atlases.py,
data_sharding/parcels/parcellation.py, data_sharding/parcels/series.py
"""

import importlib.util
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from mcsp.config import FmriConfig
from mcsp.data_sharding.bids.find import find_recordings
from mcsp.data_sharding.bids.reasons import RecordingError
from mcsp.data_sharding.bids.ref import RecordingRef, Site
from mcsp.data_sharding.bids.write import write_json, write_parcellated_bold, write_tsv
from mcsp.data_sharding.clean.fmri import detrend, read_fmri
from mcsp.data_sharding.clean.recording import CleanRecording

T_R, VOLUMES = 2.0, 60
NAMES = ["a", "b", "c", "d"]
STEM = "sub-1_task-rest_space-MNI152NLin6Asym"


def only_ref(root: Path, label_image: Path | None = None) -> RecordingRef:
    (ref,) = find_recordings(Site("site", root, False, label_image))
    return ref


def read(root: Path, label_image: Path | None = None, **options: object) -> CleanRecording:
    return read_fmri(only_ref(root, label_image), FmriConfig.parse(options, "test"), min_seconds=30)


def reason(root: Path, label_image: Path | None = None, **options: object) -> str:
    with pytest.raises(RecordingError) as error:
        read(root, label_image, **options)
    # One line that begins with the file.
    assert re.match(r"[\w.-]+\.(edf|vhdr|set|fif|eeg|json|tsv|1D|nii|gz)[: ]", str(error.value))
    assert "\n" not in str(error.value)
    return error.value.reason


def bold_PT(seed: int = 0) -> np.ndarray:
    return 1000 * (1 + 0.01 * np.random.default_rng(seed).standard_normal((len(NAMES), VOLUMES)))


def expected_TP(x_PT: np.ndarray) -> np.ndarray:
    return detrend(100 * (x_PT.T / x_PT.mean(axis=1) - 1))


def folder(root: Path) -> Path:
    (root / "sub-1" / "func").mkdir(parents=True, exist_ok=True)
    write_json(root / "task-rest_timeseries.json", {"RepetitionTime": T_R})
    write_json(root / "task-rest_bold.json", {"RepetitionTime": T_R})
    return root / "sub-1" / "func"


def write_dseg(root: Path, names: list[str] = NAMES) -> None:
    rows = [(i, name, 8 * i, -8 * i, 16) for i, name in enumerate(names, 1)]
    write_tsv(root / "seg-S_dseg.tsv", ("index", "name", "x", "y", "z"), rows)


def write_1d(root: Path, x_PT: np.ndarray) -> None:
    path = folder(root) / f"{STEM}_seg-S_stat-mean_timeseries.1D"
    np.savetxt(path, x_PT.T, header="3dmaskave -quiet")


def write_ptseries(root: Path, x_PT: np.ndarray, step: float = T_R) -> None:
    voxels = np.arange(3 * len(NAMES)).reshape(len(NAMES), 1, 3) % 5
    axis = nibabel.cifti2.ParcelsAxis(
        NAMES, list(voxels), [{}] * len(NAMES), affine=np.diag([20.0, 20, 20, 1]), volume_shape=(5, 5, 5)
    )
    series = nibabel.cifti2.SeriesAxis(0, step, VOLUMES, "SECOND")
    image = nibabel.Cifti2Image(x_PT.T.astype(np.float32), header=(series, axis))
    nibabel.save(image, folder(root) / f"{STEM}_seg-S_stat-mean_timeseries.ptseries.nii")


def write_image(
    root: Path,
    sform: np.ndarray | None = None,
    volumes: int = VOLUMES,
    suffix: str = ".nii.gz",
    x_PT: np.ndarray | None = None,
) -> Path:
    """Four blocks, one per parcel, whose voxels are all like ``x_PT``, else ``bold_PT``."""
    x_PT = bold_PT() if x_PT is None else x_PT
    voxels = np.repeat(x_PT[:, None, None, :volumes], 3, axis=1).repeat(3, axis=2)
    image = nibabel.Nifti1Image(voxels.astype(np.float32), np.diag([5.0, 5, 5, 1]))
    if sform is not None:
        image.header.set_qform(None, 0)
        image.header.set_sform(sform, 1)
        image = nibabel.Nifti1Image(voxels.astype(np.float32), None, image.header)
    image.header.set_xyzt_units("mm", "sec")
    image.header.set_zooms((5.0, 5.0, 5.0, T_R))
    path = folder(root) / f"{STEM}_desc-preproc_bold{suffix}"
    nibabel.save(image, path)
    labels = np.arange(1, 5, dtype=np.int16)[:, None, None].repeat(3, axis=1).repeat(3, axis=2)
    nibabel.save(nibabel.Nifti1Image(labels, np.diag([5.0, 5, 5, 1])), root / "seg-S_dseg.nii.gz")
    return path


@pytest.mark.parametrize("write", [write_1d, write_ptseries])
def test_a_parcellated_format_gives_the_values_that_were_written(
    tmp_path: Path, write: Callable[[Path, np.ndarray], None]
) -> None:
    write(tmp_path, bold_PT())
    write_dseg(tmp_path)
    recording = read(tmp_path)
    assert recording.channels == NAMES and recording.sfreq == 1 / T_R
    np.testing.assert_array_equal(recording.positions_C3[1], [16, -16, 16])
    np.testing.assert_allclose(recording.x_TC, expected_TP(bold_PT()), atol=1e-4)


def test_a_ptseries_has_positions_of_its_own_and_a_clock_that_is_checked(tmp_path: Path) -> None:
    write_ptseries(tmp_path, bold_PT())
    np.testing.assert_array_equal(read(tmp_path).positions_C3[0], [0, 20, 40])
    write_ptseries(tmp_path, bold_PT(), step=2000.0)
    assert reason(tmp_path) == "t_r-mismatch"


@pytest.mark.parametrize(("unit", "step"), [("sec", 2.0), ("msec", 2000.0), ("usec", 2e6), ("unknown", 2.0)])
def test_an_image_says_its_clock_in_any_unit(tmp_path: Path, unit: str, step: float) -> None:
    path = write_image(tmp_path)
    image = nibabel.Nifti1Image(np.asarray(nibabel.load(path).dataobj), np.diag([5.0, 5, 5, 1]))
    for factor, fits in ((1.0, True), (1.02, False)):
        image.header.set_xyzt_units("mm", unit)
        image.header.set_zooms((5.0, 5.0, 5.0, factor * step))
        nibabel.save(image, path)
        if fits:
            assert read(tmp_path).sfreq == 1 / T_R
        else:
            assert reason(tmp_path) == "t_r-mismatch"


def test_a_1d_file_without_a_table_has_no_places_and_is_refused(tmp_path: Path) -> None:
    write_1d(tmp_path, bold_PT())
    assert reason(tmp_path) == "unknown-parcellation"
    write_dseg(tmp_path, ["a", "b"])
    assert reason(tmp_path) == "parcels-mismatch"


def test_a_parcel_that_a_table_misses_stays_in_its_place(tmp_path: Path) -> None:
    write_parcellated_bold(tmp_path, "1", "S", ["c", "a", "b"], bold_PT()[:3], {"RepetitionTime": T_R})
    write_dseg(tmp_path)
    recording = read(tmp_path)
    assert recording.channels == NAMES
    assert recording.channel_good_C.tolist() == [True, True, True, False]
    np.testing.assert_allclose(recording.x_TC[:, 2], expected_TP(bold_PT())[:, 0], atol=1e-3)
    write_dseg(tmp_path, [*NAMES, *"efgh"])
    assert reason(tmp_path) == "parcels-missing"


@pytest.mark.parametrize(("kind", "names"), [("txt", ["a", "b", "c", "d"]), ("xml", ["a", "b", "c", "d"])])
def test_label_images_as_nilearn_has_them_bring_their_names(tmp_path: Path, kind: str, names: list[str]) -> None:
    write_image(tmp_path)
    stem = {"txt": "Schaefer2018_4Parcels_7Networks_order", "xml": "AAL"}[kind]
    labels = tmp_path.parent / f"{tmp_path.name}-atlas" / f"{stem}{'_FSLMNI152_2mm' if kind == 'txt' else ''}.nii.gz"
    labels.parent.mkdir()
    shutil.move(tmp_path / "seg-S_dseg.nii.gz", labels)
    if kind == "txt":
        lines = [f"{i}\t{name}\t120\t18\t131\t0" for i, name in enumerate(names, 1)]
        (labels.parent / f"{stem}.txt").write_text("\n".join(lines) + "\n")
    else:
        rows = [f"<label><index>{i}</index><name>{name}</name></label>" for i, name in enumerate(names, 1)]
        (labels.parent / "AAL.xml").write_text(f"<atlas><data>{''.join(rows)}</data></atlas>")
    if kind == "xml":  # AAL lies in Colin's brain
        assert reason(tmp_path, labels) == "label-space-mismatch"
    recording = read(tmp_path, labels, label_space="MNI152NLin6Asym" if kind == "xml" else None)
    assert recording.channels == names
    np.testing.assert_allclose(recording.x_TC, expected_TP(bold_PT()), atol=1e-3)
    np.testing.assert_allclose(recording.positions_C3[2], [10, 5, 5])


def test_uncovered_voxels_do_not_count_and_uncovered_parcels_are_masked(tmp_path: Path) -> None:
    path = write_image(tmp_path)
    image = nibabel.load(path)
    voxels = image.get_fdata()
    voxels[0, 0] = 0.0  # a third of parcel a
    voxels[1, :, 1:] = np.nan  # two thirds of parcel b
    nibabel.save(nibabel.Nifti1Image(voxels, image.affine, image.header), path)
    recording = read(tmp_path)
    assert recording.channel_good_C.tolist() == [True, False, True, True]
    np.testing.assert_allclose(recording.x_TC[:, 0], expected_TP(bold_PT())[:, 0], atol=1e-3)


def kept_of(recording: CleanRecording) -> np.ndarray:
    spans = np.array(recording.valid_spans).reshape(-1, 2)
    return np.concatenate([np.arange(start, stop) for start, stop in spans])


def test_damaged_images_have_reasons_of_their_own(tmp_path: Path) -> None:
    path = write_image(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert reason(tmp_path) == "truncated"
    write_image(tmp_path, sform=np.diag([5.0, 5, 0, 1]))
    assert reason(tmp_path) == "singular-affine"
    write_image(tmp_path, volumes=1)
    assert reason(tmp_path) == "no-volumes"
    image = nibabel.load(write_image(tmp_path))
    nibabel.save(nibabel.Nifti1Image(image.get_fdata()[..., 0], image.affine), path)
    assert reason(tmp_path) == "not-4d"
    write_image(tmp_path)
    (tmp_path / "seg-S_dseg.nii.gz").unlink()
    assert reason(tmp_path) == "no-label-image"
    floats = tmp_path / "seg-S_dseg.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.random.default_rng(0).random((4, 3, 3)), np.diag([5.0, 5, 5, 1])), floats)
    assert reason(tmp_path) == "bad-label-image"
    write_image(tmp_path)
    floats.rename(tmp_path / "space-T1w_seg-S_dseg.nii.gz")
    assert reason(tmp_path, tmp_path / "space-T1w_seg-S_dseg.nii.gz") == "label-space-mismatch"


def test_an_uncompressed_image_cut_short_is_truncated(tmp_path: Path) -> None:
    path = write_image(tmp_path, suffix=".nii")
    path.write_bytes(path.read_bytes()[:-2000])
    assert reason(tmp_path) == "truncated"


def test_tables_that_are_none_have_reasons(tmp_path: Path) -> None:
    path = write_parcellated_bold(tmp_path, "1", "S", NAMES, bold_PT(), {"RepetitionTime": T_R})
    write_dseg(tmp_path)
    path.write_text("\t".join(NAMES) + "\n")
    assert reason(tmp_path) == "no-volumes"
    path.write_text("a\tb\n1\tx\n")
    assert reason(tmp_path) == "bad-table"
    path.write_bytes(b"a\tb\xff\n1\t2\n")
    assert reason(tmp_path) == "bad-encoding"


def test_a_label_image_of_another_grid_is_put_onto_the_images(tmp_path: Path) -> None:
    write_image(tmp_path)
    fine = np.arange(1, 5, dtype=np.int16)[:, None, None].repeat(3, axis=1).repeat(3, axis=2)
    fine = np.pad(fine.repeat(5, 0).repeat(5, 1).repeat(5, 2), 3)
    affine = np.diag([1.0, 1, 1, 1])
    affine[:3, 3] = -5
    nibabel.save(nibabel.Nifti1Image(fine, affine), tmp_path / "seg-S_dseg.nii.gz")
    np.testing.assert_allclose(read(tmp_path).x_TC, expected_TP(bold_PT()), atol=1e-3)


def example(name: str) -> Path:
    spec = importlib.util.find_spec("nibabel")
    assert spec is not None and spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "tests" / "data" / name


def test_nibabels_example_with_milliseconds_in_its_header_is_caught(tmp_path: Path) -> None:
    shutil.copy(example("example4d.nii.gz"), folder(tmp_path) / f"{STEM}_desc-preproc_bold.nii.gz")
    image = nibabel.load(example("example4d.nii.gz"))
    nibabel.save(nibabel.Nifti1Image(np.ones(image.shape[:3], np.int16), image.affine), tmp_path / "seg-S_dseg.nii.gz")
    with pytest.raises(RecordingError, match="milliseconds") as error:
        read(tmp_path)
    assert error.value.reason == "t_r-mismatch"


def test_nibabels_functional_image_is_read(tmp_path: Path) -> None:
    shutil.copy(example("functional.nii"), folder(tmp_path) / f"{STEM}_desc-preproc_bold.nii")
    image = nibabel.load(example("functional.nii"))
    t_r = float(image.header.get_zooms()[3])
    write_json(tmp_path / "task-rest_bold.json", {"RepetitionTime": t_r or T_R})
    inside = image.get_fdata().mean(axis=3) > image.get_fdata().mean()
    labels = (inside * np.where(np.arange(image.shape[0]) < 8, 1, 2)[:, None, None]).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(labels, image.affine), tmp_path / "seg-S_dseg.nii.gz")
    recording = read_fmri(only_ref(tmp_path), FmriConfig(), min_seconds=10)
    means_PT = np.stack([image.get_fdata()[labels == label].mean(axis=0) for label in (1, 2)])
    np.testing.assert_allclose(recording.x_TC, expected_TP(means_PT), atol=1e-3)


def test_a_stream_that_unpacks_to_something_else_is_seen_at_its_end(tmp_path: Path) -> None:
    path = write_image(tmp_path)
    content = bytearray(path.read_bytes())
    content[-8] ^= 0xFF  # of the checksum: as one wrong bit of the values would
    path.write_bytes(content)
    with pytest.raises(OSError, match="CRC check failed"):  # "unreadable", as whatever a library raises
        read(tmp_path)


@pytest.mark.parametrize("lost", [0.0, np.nan])
def test_volumes_that_are_empty_are_taken_out(tmp_path: Path, lost: float) -> None:
    """Censoring by zeros or NaN, and a first volume that was never reconstructed."""
    x_PT = bold_PT()
    x_PT[:, [0, 30, 31]] = lost
    kept_T = np.delete(np.arange(VOLUMES), [0, 30, 31])
    expected_KP = 100 * (x_PT[:, kept_T].T / x_PT[:, kept_T].mean(axis=1) - 1)
    line_K2 = np.stack([np.ones(len(kept_T)), np.arange(len(kept_T))], axis=1)
    expected_KP -= line_K2 @ np.linalg.lstsq(line_K2, expected_KP, rcond=None)[0]
    write_image(tmp_path / "image", x_PT=x_PT)
    write_1d(tmp_path / "table", x_PT)
    write_dseg(tmp_path / "table")
    for root in (tmp_path / "image", tmp_path / "table"):
        recording = read(root)
        assert recording.valid_spans == [1, 30, 32, VOLUMES] and recording.channel_good_C.all()
        np.testing.assert_allclose(recording.x_TC[kept_T], expected_KP, atol=1e-3)


def test_a_time_that_nobody_wrote_and_a_space_that_is_no_name(tmp_path: Path) -> None:
    """nibabel writes 1 of no unit where nothing is said; C-PAC calls the space of its template ``template``."""
    path = write_image(tmp_path)
    image = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image(image.get_fdata(), image.affine), path)
    assert read(tmp_path).sfreq == 1 / T_R
    path.rename(path.with_name(path.name.replace("MNI152NLin6Asym", "template")))
    assert reason(tmp_path) == "label-space-mismatch"
    (tmp_path / "seg-S_dseg.nii.gz").rename(tmp_path / "space-MNI152NLin6Asym_seg-S_dseg.nii.gz")
    assert read(tmp_path, image_space="MNI152NLin6Asym").space == "MNI152NLin6Asym"


def test_a_table_of_parcels_of_another_image_is_refused(tmp_path: Path) -> None:
    write_image(tmp_path)
    rows = [(i, name, 5 * i - 5, 5, 5) for i, name in enumerate(NAMES, 1)]
    columns = ("index", "name", "x", "y", "z")
    write_tsv(tmp_path / "seg-S_dseg.tsv", columns, [(0, "Background", "n/a", "n/a", "n/a"), *rows])
    assert read(tmp_path).channels == NAMES
    write_tsv(tmp_path / "seg-S_dseg.tsv", columns, [(i - 1, *row) for i, *row in rows])
    assert reason(tmp_path) == "parcels-mismatch"
    write_tsv(tmp_path / "seg-S_dseg.tsv", columns, [(i, name, -40 - x, -y, z) for i, name, x, y, z in rows])
    with pytest.raises(RecordingError, match=r"the places of its table lie \d+ mm from those of its labels"):
        read(tmp_path)
