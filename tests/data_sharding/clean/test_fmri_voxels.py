"""Parcels of images in memory against plain loops; parcels of CIFTI; which files of a dataset place them.

Covers: data_sharding/clean/fmri_files.py
"""

from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from nibabel.affines import apply_affine

from mcsp.config import FmriConfig
from mcsp.data_sharding.bids.find import find_recordings
from mcsp.data_sharding.bids.reasons import RecordingError
from mcsp.data_sharding.bids.ref import RecordingRef, Site
from mcsp.data_sharding.bids.write import write_json, write_tsv
from mcsp.data_sharding.clean import fmri_files
from mcsp.data_sharding.clean.fmri_files import average_parcels, read_time_series
from mcsp.data_sharding.parcels.atlases import Atlas, atlas_of_image

MNI = "MNI152NLin6Asym"
AFFINE = np.array([[2.0, 0, 0, -30], [0, 2, 0, -40], [0, 0, 2, -20], [0, 0, 0, 1]])


def bold(
    voxels: np.ndarray, affine: np.ndarray = AFFINE, t_r: float = 2.0, unit: str = "sec"
) -> tuple[nibabel.Nifti1Image, str]:
    image = nibabel.Nifti1Image(voxels, affine)
    image.header.set_xyzt_units("mm", unit)
    image.header.set_zooms((*image.header.get_zooms()[:3], t_r))
    return image, "x_bold.nii"


def atlas(labels: np.ndarray, affine: np.ndarray = AFFINE) -> Atlas:
    return atlas_of_image(nibabel.Nifti1Image(labels.astype(np.int16), affine), "a.nii", [], MNI)


def noise(*shape: int) -> np.ndarray:
    return 1000 + np.random.default_rng(0).standard_normal(shape)


def blocks() -> np.ndarray:
    """Labels 2, 5 and 6 of 18, 9 and 1 voxels."""
    labels = np.zeros((5, 3, 3))
    labels[:2], labels[3], labels[4, 1, 1] = 2, 5, 6
    return labels


@pytest.mark.parametrize("chunk_bytes", [1, 8 * 45 * 2, 8 * 45 * 7, 1 << 20])
@pytest.mark.parametrize("lost", [0.0, np.nan])
def test_means_of_labels_are_those_of_a_plain_loop_however_much_is_read_at_once(
    monkeypatch: pytest.MonkeyPatch, chunk_bytes: int, lost: float
) -> None:
    """The first volume that is not empty says which voxels are covered; those before it are none."""
    monkeypatch.setattr(fmri_files, "_CHUNK_BYTES", chunk_bytes)
    voxels, labels = noise(5, 3, 3, 9), blocks()
    voxels[..., :3] = lost
    voxels[0, :2, 0] = lost
    voxels[1, 1, 1, 3], voxels[1, 2, 2, 6] = 0.0, 0.0  # of the first volume, of a later one
    found_TP, parcels = average_parcels(*bold(voxels), atlas(labels), 2.0, 0.5)
    expected_TP = np.full((9, 3), np.nan)
    for p, label in enumerate((2, 5, 6)):
        inside = (labels == label) & np.isfinite(voxels[..., 3]) & (voxels[..., 3] != 0)
        expected_TP[3:, p] = voxels[inside][:, 3:].mean(axis=0)
    np.testing.assert_allclose(found_TP, expected_TP, rtol=1e-12)
    assert parcels.labels == [2, 5, 6]


def test_a_parcel_is_covered_from_the_fraction_on_that_is_set() -> None:
    voxels = noise(5, 3, 3, 4)
    voxels[0, :2] = 0.0  # 6 of the 18 voxels of the first parcel
    for least, covered in ((2 / 3, True), (0.667, False)):
        found_TP, _ = average_parcels(*bold(voxels), atlas(blocks()), 2.0, least)
        assert np.isfinite(found_TP).all(axis=0).tolist() == [covered, True, True]
    found_TP, _ = average_parcels(*bold(voxels), atlas(blocks()), 2.0, 1.0)
    assert np.isfinite(found_TP).all(axis=0).tolist() == [False, True, True], "one voxel is all of a parcel of one"


@pytest.mark.parametrize(
    ("zoom", "unit", "t_r", "repaired"),
    [(1.0, "sec", 2.0, True), (1.0, "unknown", 2.0, False), (1.0, "sec", 1.0, False), (2.0, "unknown", 2.0, False),
     (2000.0, "msec", 2.0, False), (2e6, "usec", 2.0, False), (0.0, "sec", 2.0, False), (2.019, "sec", 2.0, False),
     (1.981, "sec", 2.0, False)],
)  # fmt: skip
def test_a_clock_of_a_header_that_agrees(zoom: float, unit: str, t_r: float, repaired: bool) -> None:
    _, parcels = average_parcels(*bold(noise(5, 3, 3, 4), t_r=zoom, unit=unit), atlas(blocks()), t_r, 0.5)
    told = ("x_bold.nii: 1 s in the image header is not used, t_r is 2 s",)
    assert parcels.repairs == (told if repaired else ())


@pytest.mark.parametrize(
    ("zoom", "unit", "found"),
    [(2.03, "sec", "2.03 s in the image header (unit sec)"), (1.97, "sec", "1.97 s"),
     (3.0, "unknown", "3 s in the image header (unit unknown)"),
     (1.0, "msec", "0.001 s in the image header (unit msec)"),
     (2000.0, "sec", "2000 s in the image header (unit sec) (milliseconds?)"),
     (2015.0, "sec", "2015 s in the image header (unit sec) (milliseconds?)"),
     (2.0, "hz", "volumes follow each other in hz, expected a unit of time")],
)  # fmt: skip
def test_a_clock_of_a_header_that_differs(zoom: float, unit: str, found: str) -> None:
    with pytest.raises(RecordingError) as error:
        average_parcels(*bold(noise(5, 3, 3, 4), t_r=zoom, unit=unit), atlas(blocks()), 2.0, 0.5)
    assert error.value.reason == "t_r-mismatch" and found in str(error.value)
    assert ("milliseconds" in str(error.value)) == (zoom > 1999)


def test_a_few_voxels_may_run_over_and_a_wide_range_is_no_such() -> None:
    """Of 2000 voxels two may; nine tenths of the range of int16 are 58,982."""
    labels = np.ones((20, 10, 10))
    voxels = np.full((20, 10, 10, 4), 29_000, np.int16)
    voxels[0, 0, :2, 1] = -29_983
    average_parcels(*bold(voxels), atlas(labels), 2.0, 0.5)
    voxels[..., 2] = -29_982
    voxels[0, 0, :2, 1] = 29_000
    average_parcels(*bold(voxels), atlas(labels), 2.0, 0.5)
    voxels[0, 0, :3, 1] = -29_983
    with pytest.raises(RecordingError, match="voxels jump from one end of int16 to the other") as error:
        average_parcels(*bold(voxels), atlas(labels), 2.0, 0.5)
    assert error.value.reason == "clipped"
    average_parcels(*bold(voxels.astype(np.int32)), atlas(labels), 2.0, 0.5)


@pytest.mark.parametrize(("slope", "refused"), [(1.0, True), (2.0, False)])
def test_integers_that_are_scaled_fill_their_range(tmp_path: Path, slope: float, refused: bool) -> None:
    image, _ = bold(np.tile(np.array([-32_000, 32_000], np.int16), (5, 3, 3, 2)))
    image.header.set_slope_inter(slope, 0)
    nibabel.save(image, tmp_path / "x.nii")
    image = nibabel.load(tmp_path / "x.nii")
    assert image.get_data_dtype() == np.int16 and image.dataobj.slope == slope
    if refused:
        with pytest.raises(RecordingError, match="voxels jump"):
            average_parcels(image, "x.nii", atlas(blocks()), 2.0, 0.5)
    else:
        average_parcels(image, "x.nii", atlas(blocks()), 2.0, 0.5)


@pytest.mark.parametrize(
    ("step", "origin", "shape"),
    [(2.0, (-30, -40, -20), (5, 3, 3)), (2.0, (-34, -42, -22), (9, 7, 6)), (3.0, (-31, -41.2, -19), (4, 3, 2)),
     (0.9, (-31, -41, -21), (12, 9, 9))],
)  # fmt: skip
def test_labels_of_another_grid_are_those_of_the_nearest_voxel(
    step: float, origin: tuple[float, ...], shape: tuple[int, ...]
) -> None:
    affine = np.diag([step, step, step, 1.0])
    affine[:3, 3] = origin
    voxels, labels = noise(*shape, 3), blocks()
    to_labels = np.linalg.inv(AFFINE) @ affine
    expected: dict[int, list[np.ndarray]] = {2: [], 5: [], 6: []}
    for ijk in np.ndindex(*shape):
        nearest = np.round(apply_affine(to_labels, ijk)).astype(int)
        if (nearest >= 0).all() and (nearest < labels.shape).all() and (label := labels[tuple(nearest)]):
            expected[int(label)].append(voxels[ijk])
    found_TP, _ = average_parcels(*bold(voxels, affine), atlas(labels), 2.0, 0.5)
    for p, of_label in enumerate(expected.values()):
        mean_T = np.mean(of_label, axis=0) if of_label else np.full(3, np.nan)
        np.testing.assert_allclose(found_TP[:, p], mean_T, rtol=1e-12)


def test_grids_of_fine_voxels_that_lie_less_than_a_millimetre_apart_are_two() -> None:
    labels = np.arange(1, 7).reshape(6, 1, 1)
    voxels = noise(6, 1, 1, 3)
    here, there = np.eye(4), np.eye(4)
    there[0, 3] = 0.8
    found_TP, _ = average_parcels(*bold(voxels, there), atlas(labels, here), 2.0, 0.5)
    np.testing.assert_allclose(found_TP[:, 1:], voxels[:5, 0, 0].T)
    assert np.isnan(found_TP[:, 0]).all()


def dataset(root: Path, name: str) -> Path:
    write_json(root / "dataset_description.json", {"Name": "x"})
    path = root / "sub-1/func" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def only_ref(root: Path) -> RecordingRef:
    (ref,) = find_recordings(Site("site", root, False, None))
    return ref


def ptseries(path: Path, unit: str = "SECOND", step: float = 2.0) -> np.ndarray:
    """Four parcels of two voxels each; their centres [mm]."""
    voxels = [np.array([[i, 0, 1], [i, 2, 4]]) for i in range(4)]
    axis = nibabel.cifti2.ParcelsAxis(list("abcd"), voxels, [{}] * 4, affine=AFFINE, volume_shape=(5, 5, 5))
    header = (nibabel.cifti2.SeriesAxis(0, step, 6, unit), axis)
    nibabel.save(nibabel.Cifti2Image(noise(6, 4).astype(np.float32), header=header), path)
    return np.array([[-30 + 2 * i, -38, -15] for i in range(4)])


def test_parcels_of_cifti_lie_at_the_mean_of_their_voxels_unless_a_table_says_more(tmp_path: Path) -> None:
    own_P3 = ptseries(dataset(tmp_path, "sub-1_task-rest_space-MNI_seg-S_timeseries.ptseries.nii"))
    x_TP, parcels = read_time_series(only_ref(tmp_path), 2.0, FmriConfig())
    np.testing.assert_array_equal(parcels.positions_P3, own_P3)
    np.testing.assert_allclose(x_TP, noise(6, 4), rtol=1e-6)
    assert (parcels.names, parcels.space) == (list("abcd"), "MNI")
    table = tmp_path / "seg-S_dseg.tsv"
    write_tsv(table, ("index", "name", "x", "y", "z"), [(1, "c", "n/a", "n/a", "n/a"), (2, "a", 50, 40, 30)])
    x_TP, parcels = read_time_series(only_ref(tmp_path), 2.0, FmriConfig())
    assert parcels.names == ["c", "a", "b", "d"]
    np.testing.assert_array_equal(parcels.positions_P3, [own_P3[2], [50, 40, 30], own_P3[1], own_P3[3]])
    np.testing.assert_allclose(x_TP, noise(6, 4)[:, [2, 0, 1, 3]], rtol=1e-6)
    write_tsv(table, ("index", "name", "x", "y", "z"), [(1, "other", 50, 40, 30)])
    assert read_time_series(only_ref(tmp_path), 2.0, FmriConfig())[1].names == list("abcd")


def test_an_axis_of_cifti_in_hertz_is_no_time(tmp_path: Path) -> None:
    ptseries(dataset(tmp_path, "sub-1_task-rest_space-MNI_seg-S_timeseries.ptseries.nii"), "HERTZ")
    with pytest.raises(RecordingError, match="in HERTZ, expected a unit of time") as error:
        read_time_series(only_ref(tmp_path), 2.0, FmriConfig())
    assert error.value.reason == "t_r-mismatch"


def save_labels(path: Path, x_mm: float) -> None:
    """Two parcels of one voxel, at ``x_mm`` and 20 mm to the left of it."""
    labels = np.zeros((12, 3, 3))
    labels[11, 1, 1], labels[1, 1, 1] = 1, 2
    affine = AFFINE.copy()
    affine[0, 3] = x_mm - 22
    nibabel.save(nibabel.Nifti1Image(labels.astype(np.int16), affine), path)


def test_places_of_a_table_are_those_of_its_own_segmentation_and_space(tmp_path: Path) -> None:
    """Tables come before label images, of which that of the recording's space counts."""
    path = dataset(tmp_path, f"sub-1_task-rest_space-{MNI}_seg-S_timeseries.tsv")
    write_tsv(path, ("l", "r"), noise(2, 2).tolist())
    for name, x_mm in ((f"space-{MNI}_seg-T_dseg.nii.gz", 10), ("space-MNI152NLin2009cAsym_seg-S_dseg.nii.gz", 20),
                       (f"space-{MNI}_seg-S_dseg.nii.gz", 30)):  # fmt: skip
        save_labels(tmp_path / name, x_mm)
    write_tsv(tmp_path / "seg-T_dseg.tsv", ("index", "name", "x", "y", "z"), [(1, "l", 1, 1, 1), (2, "r", 60, 1, 1)])
    write_tsv(tmp_path / "seg-S_dseg.tsv", ("index", "name"), [(1, "l"), (2, "r")])
    x_TP, parcels = read_time_series(only_ref(tmp_path), 2.0, FmriConfig())
    assert parcels.positions_P3[:, 0].tolist() == [30, 10] and parcels.space == MNI and len(x_TP) == 2
    write_tsv(tmp_path / "seg-S_dseg.tsv", ("index", "name", "x", "y", "z"), [(1, "l", -50, 0, 0), (2, "r", 50, 0, 0)])
    x_TP, parcels = read_time_series(only_ref(tmp_path), 2.0, FmriConfig())
    assert parcels.positions_P3[:, 0].tolist() == [-50, 50]
    write_tsv(path, ("l", "r"), noise(1, 2).tolist())
    with pytest.raises(RecordingError, match="1 volumes, expected a time series") as error:
        read_time_series(only_ref(tmp_path), 2.0, FmriConfig())
    assert error.value.reason == "no-volumes"


def test_the_label_image_of_an_image_is_that_of_its_space_and_of_the_parcellation_that_is_named(tmp_path: Path) -> None:
    path = dataset(tmp_path, f"sub-1_task-rest_space-{MNI}_desc-preproc_bold.nii")
    affine = AFFINE.copy()
    affine[0, 3] = -50
    nibabel.save(bold(noise(60, 3, 3, 4).astype(np.float32), affine)[0], path)
    for name, x_mm in ((f"space-{MNI}_seg-A_dseg.nii.gz", 10), (f"space-{MNI}_seg-B_dseg.nii.gz", 30),
                       ("space-MNI152NLin2009cAsym_seg-C_dseg.nii.gz", 50)):  # fmt: skip
        save_labels(tmp_path / name, x_mm)

    def places(ref: RecordingRef, parcellation: str | None) -> list[float]:
        return read_time_series(ref, 2.0, FmriConfig(parcellation=parcellation))[1].positions_P3[:, 0].tolist()

    ref = only_ref(tmp_path)
    assert places(ref, "B") == [30, 10] and places(ref, "A") == [10, -10]
    assert places(ref, "C") in ([30, 10], [10, -10]), "the space comes first"
    named = replace(ref, site=replace(ref.site, label_image=tmp_path / f"space-{MNI}_seg-A_dseg.nii.gz"))
    assert places(named, "B") == [10, -10], "the settings come first"


def test_an_image_whose_name_says_no_space_gets_the_labels_of_the_space_that_the_settings_say(tmp_path: Path) -> None:
    path = dataset(tmp_path, "sub-1_task-rest_desc-preproc_bold.nii")
    affine = AFFINE.copy()
    affine[0, 3] = -50
    nibabel.save(bold(noise(60, 3, 3, 4).astype(np.float32), affine)[0], path)
    spaces = {"MNI152NLin2009aSym": 10, MNI: 30, "MNI152NLin2009cAsym": 50}
    for space, x_mm in spaces.items():
        save_labels(tmp_path / f"space-{space}_seg-A_dseg.nii.gz", x_mm)
    for space, x_mm in spaces.items():
        _, parcels = read_time_series(only_ref(tmp_path), 2.0, FmriConfig(image_space=space))
        assert parcels.positions_P3[:, 0].tolist() == [x_mm, x_mm - 20] and parcels.space == space
    save_labels(tmp_path / "seg-A_dseg.nii.gz", 40)  # put there for images in a standard space, whichever it is
    for space in spaces:
        (tmp_path / f"space-{space}_seg-A_dseg.nii.gz").unlink()
    _, parcels = read_time_series(only_ref(tmp_path), 2.0, FmriConfig(image_space=MNI))
    assert parcels.positions_P3[:, 0].tolist() == [40, 20] and parcels.space == MNI
    write_tsv(tmp_path / "dseg.tsv", ("index", "name"), [(1, "one"), (2, "two")])
    assert read_time_series(only_ref(tmp_path), 2.0, FmriConfig(image_space=MNI))[1].names == ["one", "two"]
    write_tsv(tmp_path / "seg-A_dseg.tsv", ("index", "name"), [(1, "own"), (2, "two")])
    assert read_time_series(only_ref(tmp_path), 2.0, FmriConfig(image_space=MNI))[1].names == ["own", "two"]
