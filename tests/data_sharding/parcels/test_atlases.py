"""Atlases by the names under which nilearn fetches them, read from files in nilearn's own layout."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
from nilearn import datasets

from mcsp.data_sharding.bids.reasons import RecordingError
from mcsp.data_sharding.parcels.atlases import atlas_of_bunch, atlas_of_file, named_atlas

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
