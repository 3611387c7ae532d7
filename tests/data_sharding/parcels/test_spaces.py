"""The space of images and atlases is known and the same, or they are refused."""

from pathlib import Path

import nibabel
import numpy as np
import pytest

from mcsp.data_sharding.bids.reasons import RecordingError
from mcsp.data_sharding.parcels.atlases import (
    require_orientation,
    require_same,
    require_standard,
    same_space,
    space_of_atlas,
    space_of_image,
    space_of_name,
)


@pytest.mark.parametrize(
    ("path", "space"),
    [
        ("sub-1/func/sub-1_task-rest_space-MNI152NLin2009cAsym_desc-preproc_bold.nii.gz", "MNI152NLin2009cAsym"),
        ("tpl-MNI152NLin6Asym_res-02_atlas-Schaefer2018_desc-400Parcels7Networks_dseg.nii.gz", "MNI152NLin6Asym"),
        ("tpl-MNI152NLin6Asym/atlas.nii.gz", "MNI152NLin6Asym"),
        ("tpl-MNIPediatricAsym_cohort-2_res-1_seg-A_dseg.nii.gz", "MNIPediatricAsym:cohort-2"),
        ("schaefer_2018/Schaefer2018_400Parcels_7Networks_order_FSLMNI152_2mm.nii.gz", "MNI152NLin6Asym"),
        ("fsl/HarvardOxford/HarvardOxford-cort-maxprob-thr25-2mm.nii.gz", "MNI152NLin6Asym"),
        ("aal/atlas/AAL.nii", "MNIColin27"),
        ("atlas-Lobes_dseg.nii.gz", ""),
        ("mine.nii.gz", ""),
    ],
)
def test_the_space_of_a_file_is_that_of_its_name_or_of_a_known_atlas(path: str, space: str) -> None:
    assert space_of_atlas(Path(path)) == space
    if "space-" in path or "tpl-" in path:
        assert space_of_name(Path(path)) == space


def test_generations_of_mni_are_different_spaces() -> None:
    assert same_space("MNI152NLin6Asym", "FSLMNI152") and same_space("MNI152NLin6ASym", "MNI152NLin6Asym")
    assert not same_space("MNI152NLin6Asym", "MNI152NLin2009cAsym") and not same_space("MNIColin27", "MNI152NLin6Asym")


@pytest.mark.parametrize("space", ["T1w", "", "orig", "fsaverage", "func"])
def test_an_image_in_no_standard_space_is_refused(space: str) -> None:
    with pytest.raises(RecordingError, match="expected an image in an MNI space") as error:
        require_standard(space, "sub-1_bold.nii.gz")
    assert error.value.reason == "label-space-mismatch"
    require_standard("MNI152NLin2009cAsym", "sub-1_bold.nii.gz")


@pytest.mark.parametrize(("atlas", "pattern"), [("", "nothing says its space"), ("MNIColin27", "lies in MNIColin27")])
def test_an_atlas_of_another_space_or_of_none_is_refused(atlas: str, pattern: str) -> None:
    with pytest.raises(RecordingError, match=pattern):
        require_same("MNI152NLin6Asym", "sub-1_bold.nii.gz", atlas, "atlas.nii.gz")
    require_same("MNI152NLin6Asym", "sub-1_bold.nii.gz", "MNI152NLin6Asym", "atlas.nii.gz")


def image(codes: tuple[int, int], flipped: bool = False) -> nibabel.Nifti1Image:
    affine = np.diag([3.0, 3, 3, 1])
    made = nibabel.Nifti1Image(np.zeros((4, 4, 4), np.int16), affine)
    made.set_sform(affine, codes[0])
    made.set_qform(np.diag([-3.0, 3, 3, 1]) if flipped else affine, codes[1], update_affine=False)
    return made


def test_an_image_says_where_left_is() -> None:
    for codes in ((4, 4), (0, 1), (2, 0)):
        require_orientation(image(codes), "a.nii")
    for made in (image((0, 0)), image((1, 1), flipped=True)):
        with pytest.raises(RecordingError, match="left and right") as error:
            require_orientation(made, "a.nii")
        assert error.value.reason == "no-orientation"


@pytest.mark.parametrize(("codes", "sound"), [((4, 4), False), ((1, 1), False), ((4, 1), True)])
def test_sform_and_qform_of_one_space_are_one_place(codes: tuple[int, int], sound: bool) -> None:
    made = image(codes)
    moved = made.affine.copy()
    moved[:3, 3] += [0, 12, 5]
    made.set_qform(moved, codes[1], update_affine=False)
    if sound:  # MNI's and the scanner's
        require_orientation(made, "a.nii")
        return
    with pytest.raises(RecordingError, match=rf"one code \({codes[0]}\) and lie 13 mm apart") as error:
        require_orientation(made, "a.nii")
    assert error.value.reason == "no-orientation"


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_sform_and_qform_may_be_five_millimetres_apart_at_either_end_of_the_image(axis: int) -> None:
    """Voxels of 3.0 and 3.2 mm: what is near at one end is far at the other."""
    for shape, at_first, at_last, sound in (
        ((4, 4, 4), 4.9, 4.1, True), ((4, 4, 4), 5.1, 4.3, False), ((4, 4, 4, 9), 4.1, 4.9, True),
        ((4, 4, 4, 9), 4.3, 5.1, False), ((60, 60, 60), -4.0, 8.0, False),
    ):  # fmt: skip
        made = nibabel.Nifti1Image(np.zeros(shape, np.int16), np.diag([3.0, 3, 3, 1]))
        made.set_sform(made.affine, 4)
        other = np.diag([3.0, 3, 3, 1])
        other[axis, axis] += (at_last - at_first) / shape[axis]
        other[axis, 3] = at_first
        made.set_qform(other, 4, update_affine=False)
        if sound:
            require_orientation(made, "a.nii")
        else:
            with pytest.raises(RecordingError, match=r"one code \(4\) and lie \d mm apart"):
                require_orientation(made, "a.nii")


def test_small_voxels_have_a_place_and_flat_ones_have_none() -> None:
    require_orientation(nibabel.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.diag([0.02, 0.02, 0.02, 1])), "a.nii")
    for zooms in ([3.0, 3, 0, 1], [np.nan, 3, 3, 1], [0.009, 0.009, 0.009, 1]):
        made = nibabel.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4))
        made._affine = np.diag(zooms)
        with pytest.raises(RecordingError, match="maps no voxel to a place") as error:
            require_orientation(made, "a.nii")
        assert error.value.reason == "singular-affine"


@pytest.mark.parametrize(
    ("name", "setting", "space"),
    [("space-T1w_bold.nii", "MNI", "T1w"), ("bold.nii", "MNI", "MNI"),
     ("space-template_bold.nii", "MNI", "MNI"),
     ("bold.nii", None, ""), ("space-template_bold.nii", None, "template"),
     ("space-MNI_cohort-2_x.nii", "", "MNI:cohort-2")],
)  # fmt: skip
def test_a_setting_says_the_space_of_an_image_whose_name_says_none(name: str, setting: str | None, space: str) -> None:
    assert space_of_image(Path(name), setting).startswith(space)
    assert bool(space_of_image(Path(name), setting)) == bool(space)
