"""Atlases by the names under which nilearn fetches them, read from files in nilearn's own layout."""

import inspect
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
from nilearn import datasets

from mcsp.data_sharding.bids.reasons import RecordingError
from mcsp.data_sharding.parcels.atlases import Atlas, atlas_of_bunch, atlas_of_file, is_named, named_atlas
from mcsp.data_sharding.parcels.parcellation import Parcels

AFFINE = np.array([[4.0, 0, 0, -90], [0, 4, 0, -126], [0, 0, 4, -72], [0, 0, 0, 1]])


def blocks(parcels: int, seed: int = 0) -> np.ndarray:
    """Labels 1 to ``parcels`` in cubes of two voxels."""
    voxels = np.zeros((46, 54, 46), np.int16)
    corners = np.random.default_rng(seed).permutation(np.indices((20, 24, 20)).reshape(3, -1).T)[:parcels]
    for label, (i, j, k) in enumerate(corners * 2, 1):
        voxels[i : i + 2, j : j + 2, k : k + 2] = label
    return voxels


@pytest.fixture
def nilearn_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """nilearn's data folder; what lies there is not downloaded."""
    monkeypatch.setenv("NILEARN_DATA", str(tmp_path))
    named_atlas.cache_clear()
    return tmp_path


def test_coordinates_that_come_with_nilearn_are_an_atlas_without_an_image() -> None:
    for name, parcels in (("Power2011", 264), ("Dosenbach2010", 160)):
        atlas = named_atlas(name)
        assert len(atlas.rows) == parcels == len(set(atlas.parcels.names)) and atlas.voxels_XYZ is None
        assert np.isfinite(atlas.parcels.positions_P3).all() and atlas.parcels.space == "MNI152"
    np.testing.assert_array_equal(named_atlas("Power2011").parcels.positions_P3[0], [-25, -98, -12])


def test_schaefer_is_read_from_nilearns_folder_with_names_places_and_space(nilearn_data: Path) -> None:
    folder = nilearn_data / "schaefer_2018"
    folder.mkdir()
    names = [f"7Networks_LH_Vis_{i}" for i in range(1, 101)]
    lines = [f"{i}\t{name}\t120\t18\t131\t0" for i, name in enumerate(names, 1)]
    (folder / "Schaefer2018_100Parcels_7Networks_order.txt").write_text("\n".join(lines) + "\n")
    voxels = blocks(100)
    image = nibabel.Nifti1Image(voxels, AFFINE)
    nibabel.save(image, folder / "Schaefer2018_100Parcels_7Networks_order_FSLMNI152_2mm.nii.gz")
    atlas = named_atlas("Schaefer2018_100Parcels_7Networks")
    assert atlas.parcels.names == names and atlas.parcels.space == "MNI152NLin6Asym"
    expected = nibabel.affines.apply_affine(AFFINE, np.argwhere(voxels == 7)).mean(axis=0)
    np.testing.assert_allclose(atlas.parcels.positions_P3[6], expected)
    assert named_atlas("Schaefer2018_100Parcels_7Networks") is atlas  # computed once
    bunch = datasets.fetch_atlas_schaefer_2018(100, 7, 2, verbose=0)
    np.testing.assert_array_equal(atlas_of_bunch(bunch).parcels.positions_P3, atlas.parcels.positions_P3)


def test_craddocks_200_is_the_volume_of_200_parcels(nilearn_data: Path) -> None:
    folder = nilearn_data / "craddock_2012"
    folder.mkdir()
    volumes = np.stack([blocks(190, 1), blocks(200, 2), blocks(392, 3)], axis=3)
    nibabel.save(nibabel.Nifti1Image(volumes, AFFINE), folder / "tcorr05_2level_all.nii.gz")
    atlas = named_atlas("CC200")
    assert atlas.parcels.names[199] == "CC200_200" and len(atlas.rows) == 200
    np.testing.assert_array_equal(atlas.voxels_XYZ, volumes[..., 1])
    assert len(named_atlas("CC400").rows) == 392


def test_other_bunches_and_names_are_told(nilearn_data: Path) -> None:
    with pytest.raises(ValueError, match=r"atlas 'Schafer': expected a file or a name like Schaefer2018_400"):
        named_atlas("Schafer")
    with pytest.raises(ValueError, match="a probabilistic atlas"):
        atlas_of_bunch({"maps": "x.nii.gz", "atlas_type": "probabilistic"})
    image = nibabel.Nifti1Image(blocks(3), AFFINE)
    atlas = atlas_of_bunch({"maps": image, "labels": ["Background", "a", "b", "c"], "template": "MNI?"})
    assert atlas.parcels.names == ["a", "b", "c"] and atlas.parcels.space == ""


def test_a_file_is_a_label_image_or_a_table(tmp_path: Path) -> None:
    table = tmp_path / "space-MNI152NLin6Asym_seg-A_dseg.tsv"
    table.write_text("name\tx\ty\tz\na\t10\t20\t30\nb\t-10\t20\t30\n")
    atlas = atlas_of_file(table)
    assert [row[:2] for row in atlas.rows] == [("a", 1), ("b", 2)] and atlas.parcels.space == "MNI152NLin6Asym"
    other = tmp_path / "atlas.mgz"
    other.touch()
    with pytest.raises(RecordingError, match="expected a label image"):
        atlas_of_file(other)
    unplaced = nibabel.Nifti1Image(blocks(3), AFFINE)
    unplaced.set_sform(AFFINE, 0)
    nibabel.save(unplaced, tmp_path / "seg-B_dseg.nii.gz")
    with pytest.raises(RecordingError, match="neither sform nor qform"):
        atlas_of_file(tmp_path / "seg-B_dseg.nii.gz")


@pytest.mark.parametrize(
    ("name", "fetcher", "asked"),
    [
        ("Schaefer2018_400", "fetch_atlas_schaefer_2018", {"n_rois": 400, "yeo_networks": 7, "resolution_mm": 2}),
        ("Schaefer_100Parcels_17Networks", "fetch_atlas_schaefer_2018",
         {"n_rois": 100, "yeo_networks": 17, "resolution_mm": 2}),
        ("HarvardOxford-cort-maxprob-thr25-2mm", "fetch_atlas_harvard_oxford",
         {"atlas_name": "cort-maxprob-thr25-2mm", "symmetric_split": True}),
        ("HarvardOxford-sub-maxprob-thr0-1mm", "fetch_atlas_harvard_oxford",
         {"atlas_name": "sub-maxprob-thr0-1mm", "symmetric_split": False}),
        ("HarvardOxford-cortl-maxprob-thr0-1mm", "fetch_atlas_harvard_oxford",
         {"atlas_name": "cortl-maxprob-thr0-1mm", "symmetric_split": False}),
        ("Juelich-maxprob-thr25-2mm", "fetch_atlas_juelich",
         {"atlas_name": "maxprob-thr25-2mm", "symmetric_split": True}),
        ("AAL", "fetch_atlas_aal", {"version": "SPM12"}),
        ("AAL-3v2", "fetch_atlas_aal", {"version": "3v2"}),
        ("BASC122", "fetch_atlas_basc_multiscale_2015", {"resolution": 122, "version": "sym"}),
    ],
)  # fmt: skip
def test_what_a_name_asks_of_nilearn(
    nilearn_data: Path, monkeypatch: pytest.MonkeyPatch, name: str, fetcher: str, asked: dict[str, object]
) -> None:
    """Of both hemispheres each its own parcels; what cannot be fetched is told."""
    calls: list[dict[str, object]] = []
    signature = inspect.signature(getattr(datasets, fetcher))

    def without_network(*arguments: object, **options: object) -> None:
        calls.append(dict(signature.bind(*arguments, **options).arguments))
        raise OSError("no route to\nhost")

    monkeypatch.setattr(datasets, fetcher, without_network)
    assert is_named(name)
    with pytest.raises(ValueError, match=rf"atlas {name}: not in nilearn's .*downloaded \(no route to host\)"):
        named_atlas(name)
    assert calls == [asked]


def test_names_of_a_bunch_are_by_label_and_the_background_is_none() -> None:
    image = nibabel.Nifti1Image(blocks(3), AFFINE)
    bunch: dict[str, object] = {"maps": image, "template": "MNI152NLin6Asym"}
    lut = pd.DataFrame({"index": ["2", "0", "1", "3"], "name": ["two", "nothing", "one", "three"]})
    for names in (
        {"lut": lut},
        {"labels": ["one", "two", "three"]},
        {"labels": [b"background", "one", "two", "three"]},
    ):
        atlas = atlas_of_bunch({**bunch, **names}, "mine")
        assert [row[:2] for row in atlas.rows] == [("one", 1), ("two", 2), ("three", 3)]
        assert (atlas.name, atlas.parcels.space) == ("mine", "MNI152NLin6Asym")
        np.testing.assert_array_equal(atlas.voxels_XYZ, blocks(3))
    assert atlas_of_bunch(bunch, "mine", "MNI152NLin2009cAsym").parcels.space == "MNI152NLin2009cAsym"


def test_coordinates_have_names_of_their_own_where_those_are_all_different() -> None:
    places = pd.DataFrame({"roi": [7, 8, 9], "x": [10, -20, 30], "y": [1, 2, 3], "z": [4, 5, 6.5]})
    named = atlas_of_bunch({"rois": places, "labels": ["a", "b", "c"]}, "mine", "MNI152")
    assert [row[:2] for row in named.rows] == [("a", 1), ("b", 2), ("c", 3)] and named.parcels.labels == [1, 2, 3]
    np.testing.assert_array_equal(named.parcels.positions_P3[2], [30, 3, 6.5])
    for labels in (["a", "a", "c"], ["a", "b"], None):
        numbered = atlas_of_bunch({"rois": places, "labels": labels}, "mine")
        assert numbered.parcels.names == ["mine-1", "mine-2", "mine-3"] and numbered.parcels.space == ""


def test_labels_of_a_table_are_its_index_else_its_rows(tmp_path: Path) -> None:
    table = tmp_path / "seg-A_dseg.tsv"
    table.write_text("index\tname\tx\ty\tz\n7\ta\t10\t20\t30\n3\tb\t-10\t20\t30\n")
    atlas = atlas_of_file(table, space="MNI152")
    assert [row[:2] for row in atlas.rows] == [("a", 7), ("b", 3)] and atlas.parcels.space == "MNI152"
    table.write_text("name\tx\ty\tz\n")
    assert atlas_of_file(table).parcels.positions_P3.shape == (0, 3)
    nibabel.save(nibabel.Nifti1Image(blocks(3), AFFINE), tmp_path / "B.nii")
    assert [row[:2] for row in atlas_of_file(tmp_path / "B.nii").rows] == [(f"parcel-{i}", i) for i in (1, 2, 3)]


def test_craddocks_series_without_such_a_volume_is_told(nilearn_data: Path) -> None:
    folder = nilearn_data / "craddock_2012"
    folder.mkdir()
    volumes = np.stack([blocks(190, 1), blocks(199, 2)], axis=3)
    nibabel.save(nibabel.Nifti1Image(volumes, AFFINE), folder / "tcorr05_2level_all.nii.gz")
    with pytest.raises(ValueError, match=r"tcorr05_2level_all.nii.gz: no volume of 200 parcels, found \[190, 199\]"):
        named_atlas("CC200")


def test_parcels_without_labels_are_numbered_from_one() -> None:
    places_P3 = np.array([[1.0, 2, 3], [4, 5, 6]])
    assert Atlas("x", Parcels(["a", "b"], [], places_P3)).rows == [("a", 1, (1.0, 2.0, 3.0)), ("b", 2, (4.0, 5.0, 6.0))]
