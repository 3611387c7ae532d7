"""Where a series of BOLD is from: what its name, its sidecar and the caller say of it must agree."""

from pathlib import Path

import nibabel
import numpy as np
import pytest

from mcsp.config import FmriConfig
from mcsp.data_sharding.bids.reasons import RecordingError
from mcsp.data_sharding.bids.write import write_parcellated_bold, write_parcellation
from mcsp.encode.bold import Source, name_of, source_of
from tests.encode.test_bold import SPACE, bold_TP, images, positions_mm

NAMES = [f"p{i}" for i in range(8)]


def source(bold: object, t_r: float | None = None, parcellation: object = None, space: str | None = None) -> Source:
    return source_of(bold, t_r, parcellation, None, space, False, FmriConfig(confounds=[], max_fd_mm=None), [])


def test_a_repetition_time_may_differ_from_the_sidecar_by_rounding_alone(tmp_path: Path) -> None:
    write_parcellation(tmp_path, "S", NAMES, positions_mm())
    (tmp_path / "dataset_description.json").write_text("{}")
    path = write_parcellated_bold(tmp_path, "1", "S", NAMES, bold_TP().T, {"RepetitionTime": 2.0})
    assert source(path).t_r == 2.0 and source(path, 2.019).t_r == 2.019
    with pytest.raises(RecordingError, match=r"t_r is given as 2\.03 s, the sidecar says 2 s") as caught:
        source(path, 2.03)
    assert caught.value.reason == "t_r-mismatch"


def test_the_space_in_the_name_of_an_image_counts_before_the_one_that_is_given() -> None:
    image, labels = images()
    assert name_of(image) == "BOLD Nifti1Image"
    found = source(image, 2.0, labels, SPACE)
    np.testing.assert_allclose(found.x_TP, bold_TP(), rtol=1e-5)
    named = nibabel.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header)
    named.set_filename("sub-1_space-MNI152NLin2009cAsym_bold.nii")
    with pytest.raises(RecordingError, match="MNI152NLin2009cAsym") as caught:
        source(named, 2.0, labels, SPACE)
    assert caught.value.reason == "label-space-mismatch"
    assert name_of(named) == "sub-1_space-MNI152NLin2009cAsym_bold.nii"
