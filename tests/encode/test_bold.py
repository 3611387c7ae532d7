"""encode_bold: the numbers of a corpus; images, tables and arrays; one clear line for what a laboratory gets wrong.

Covers: mcsp/encode/parcellations.py
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from nilearn import datasets
from nilearn.maskers import NiftiLabelsMasker, NiftiSpheresMasker
from sklearn.utils import Bunch

from mcsp.batch import collate
from mcsp.data_sharding.bids.reasons import RecordingError
from mcsp.data_sharding.bids.write import write_json, write_tsv
from mcsp.data_sharding.build.pseudonyms import subject_hash, subject_key
from mcsp.data_sharding.store.reader import Corpus
from mcsp.encode.parcellations import parcellations_of
from mcsp.encode.pretrained import PretrainedMCSP, from_pretrained
from mcsp.encode.recording import Report
from mcsp.model.weights import write_pretrained
from mcsp.windows import window_starts

T_R, VOLUMES, PARCELS = 2.0, 60, 8
SPACE = "MNI152NLin6Asym"
FP16 = 2e-3


def positions_mm() -> np.ndarray:
    return np.random.default_rng(3).uniform(-60, 60, (PARCELS, 3))


def bold_TP(seed: int = 0, volumes: int = VOLUMES) -> np.ndarray:
    slow = np.cumsum(np.random.default_rng(seed).standard_normal((volumes, PARCELS)), axis=0)
    return 1000 * (1 + 0.003 * (slow - slow.mean(axis=0)))


def images(t_r: float = T_R, unit: str = "sec") -> tuple[nibabel.Nifti1Image, nibabel.Nifti1Image]:
    """BOLD whose eight blocks follow ``bold_TP``, and their label image; 20 mm apart, centred."""
    corner = np.indices((2, 2, 2)).reshape(3, -1)
    labels = np.zeros((6, 6, 6), dtype=np.int16)
    voxels = np.zeros((6, 6, 6, VOLUMES), dtype=np.float32)
    for p, (i, j, k) in enumerate(corner.T * 3):
        labels[i : i + 2, j : j + 2, k : k + 2] = p + 1
        voxels[i : i + 2, j : j + 2, k : k + 2] = bold_TP()[:, p]
    affine = np.diag([20.0, 20, 20, 1])
    affine[:3, 3] = -50
    image = nibabel.Nifti1Image(voxels, affine)
    image.header.set_xyzt_units("mm", unit)
    image.header.set_zooms((20.0, 20.0, 20.0, t_r))
    return image, nibabel.Nifti1Image(labels, affine)


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def warns(report: Report, text: str) -> bool:
    return any(text in warning for warning in report.warnings)


@pytest.fixture(scope="module")
def of_corpus(pretrained: PretrainedMCSP, corpus_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> PretrainedMCSP:
    """An export that knows the parcellations of the corpus."""
    folder = tmp_path_factory.mktemp("known") / "model"
    known = parcellations_of(Corpus(corpus_dir).recordings)
    write_pretrained(pretrained, folder, {**pretrained.preprocessing, "parcellations": known})
    return from_pretrained(folder)


@pytest.mark.parametrize("site", ["simulated-a", "simulated-b"])
def test_features_are_those_of_the_same_recording_in_a_corpus(
    of_corpus: PretrainedMCSP, corpus_dir: Path, corpus_key: None, site: str
) -> None:
    path = next((corpus_dir.parent / "bids" / site).glob("sub-*/func/*_timeseries.tsv"))
    hashed = subject_hash(subject_key(), site, path.name.split("_")[0].removeprefix("sub-"))
    corpus = Corpus(corpus_dir)
    (recording,) = (r for r in corpus.recordings if r.subject == hashed and r.modality == "fmri")
    length = round(30 * recording.sfreq)
    starts = window_starts(recording, length, 4)
    with torch.inference_mode():
        batch = collate([[corpus.read_window(recording, start, length)] for start in starts])
        expected_WF = of_corpus.features(batch.signals)["fmri"].double().numpy()
    found = of_corpus.encode_bold(path, require_known_parcellation=True)
    assert (found.window_starts_seconds * recording.sfreq).round().astype(int).tolist() == starts
    assert 0 < difference(found.window_features, expected_WF) < FP16
    assert f"as in pretraining ({site})" in str(found.report) and not found.report.warnings
    assert f"volumes of {1 / recording.sfreq:g} s" in str(found.report)


def test_another_parcellation_is_pointed_out_or_refused_with_both_hashes(of_corpus: PretrainedMCSP) -> None:
    report = of_corpus.encode_bold(bold_TP(), T_R, positions_mm()).report
    known = [p["sha256"][:12] for p in of_corpus.preprocessing["parcellations"]]
    assert len(known) == 2 and all(warns(report, sha) for sha in known)
    assert "NOT seen in pretraining" in str(report)
    with pytest.raises(ValueError, match=r"8 parcels, sha256 \w{12}, expected one of pretraining: ") as error:
        of_corpus.encode_bold(bold_TP(), T_R, positions_mm(), require_known_parcellation=True)
    assert all(sha in str(error.value) for sha in known)


def test_the_same_names_at_other_positions_are_another_parcellation(
    of_corpus: PretrainedMCSP, corpus_dir: Path, tmp_path: Path
) -> None:
    site = corpus_dir.parent / "bids" / "simulated-a"
    lines = next(site.glob("*_dseg.tsv")).read_text().splitlines()
    cells = [line.split("\t") for line in lines]
    x = cells[0].index("x")
    moved = [[*row[:x], str(float(row[x]) + 1), *row[x + 1 :]] for row in cells[1:]]
    write_tsv(tmp_path / "moved_dseg.tsv", cells[0], moved)
    path = next(site.glob("sub-*/func/*_timeseries.tsv"))
    report = of_corpus.encode_bold(path, parcel_table=tmp_path / "moved_dseg.tsv").report
    assert warns(report, "same names at other positions")


def test_images_and_the_arrays_of_nilearn_maskers_give_the_same(pretrained: PretrainedMCSP, tmp_path: Path) -> None:
    image, labels = images()
    expected = pretrained.encode_bold(image, T_R, labels, space=SPACE)
    nibabel.save(image, tmp_path / "bold.nii.gz")
    nibabel.save(labels, tmp_path / "labels.nii.gz")
    rows = [(i, f"block {i}") for i in range(1, PARCELS + 1)]
    write_tsv(tmp_path / "names_dseg.tsv", ("index", "name"), rows)
    masker = NiftiLabelsMasker(labels, standardize=None)
    for bold, parcellation, table in (
        (tmp_path / "bold.nii.gz", tmp_path / "labels.nii.gz", None),
        (tmp_path / "bold.nii.gz", labels, None),
        (image, tmp_path / "labels.nii.gz", tmp_path / "names_dseg.tsv"),
        (masker.fit_transform(image), labels, None),
        (bold_TP().astype(np.float32), tmp_path / "labels.nii.gz", None),
    ):
        found = pretrained.encode_bold(bold, T_R, parcellation, table, space=SPACE)
        assert difference(found.window_features, expected.window_features) < 1e-4
        assert found.report.channels[0].name == ("block 1" if table else "parcel-1")


def test_a_bids_image_brings_its_t_r_and_labels_and_a_table_brings_positions(
    pretrained: PretrainedMCSP, tmp_path: Path
) -> None:
    image, labels = images()
    write_json(tmp_path / "dataset_description.json", {"Name": "x", "BIDSVersion": "1.10.0"})
    folder = tmp_path / "sub-1" / "func"
    folder.mkdir(parents=True)
    nibabel.save(image, path := folder / "sub-1_task-rest_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz")
    nibabel.save(labels, tmp_path / "seg-Blocks_dseg.nii.gz")
    write_json(folder / "sub-1_task-rest_space-MNI152NLin6Asym_desc-preproc_bold.json", {"RepetitionTime": T_R})
    expected = pretrained.encode_bold(image, T_R, labels, space=SPACE)
    assert difference(pretrained.encode_bold(path).features, expected.features) < 1e-6
    with pytest.raises(RecordingError, match=r"^sub-1_\S+: t_r is given as 1\.5 s, the sidecar says 2 s"):
        pretrained.encode_bold(path, 1.5)


def test_percent_signal_change_is_taken_as_it_is(pretrained: PretrainedMCSP) -> None:
    percent = 100 * (bold_TP() / bold_TP().mean(axis=0) - 1)
    expected = pretrained.encode_bold(bold_TP(), T_R, positions_mm())
    found = pretrained.encode_bold(percent, T_R, positions_mm(), percent=True)
    assert difference(found.features, expected.features) < 1e-4
    assert "percent signal change already" in str(found.report)


def test_parcels_without_signal_or_position_are_listed(pretrained: PretrainedMCSP) -> None:
    x_TP, places = bold_TP(), positions_mm()
    x_TP[:, 2] = np.nan
    places[5] = np.nan
    report = pretrained.encode_bold(x_TP, T_R, places).report
    assert [f.name for f in report.channels if not f.used] == ["parcel-3", "parcel-6"]
    assert "6 used; 1 without signal, 1 without position" in str(report)


def with_header(t_r: float, unit: str = "sec") -> Callable[[PretrainedMCSP], Any]:
    image, labels = images(t_r, unit)
    return lambda model: model.encode_bold(image, T_R, labels, space=SPACE)


def array(x_TP: Any, places: Any = None, t_r: float | None = T_R, **options: Any) -> Callable[[PretrainedMCSP], Any]:
    return lambda model: model.encode_bold(x_TP, t_r, positions_mm() if places is None else places, **options)


MISTAKES = {
    "wrong t_r": (with_header(3.0), r"t_r is 2 s, but 3 s in the image header"),
    "header in milliseconds": (with_header(2000.0), r"2000 s in the image header \(unit sec\) \(milliseconds\?\)"),
    "t_r in milliseconds": (array(bold_TP(), t_r=2000.0), r"t_r 2000 \(milliseconds\?\), expected 0\.05 to 20 s"),
    "no t_r": (array(bold_TP(), t_r=None), "expected t_r in seconds, found None"),
    "transposed": (array(bold_TP().T), r"shape \(8, 60\), expected \(volumes, 8\) .* pass its transpose"),
    "square": (array(bold_TP()[:8]), r"shape \(8, 8\) with 8 parcels does not say which axis is time"),
    "other parcels": (array(bold_TP()[:, :5]), r"shape \(60, 5\), expected \(volumes, 8\)"),
    "half a mean": (array(bold_TP() - 980), r"mean/deviation .* or a series without its mean"),
    "raw as percent": (array(bold_TP() ** 2, percent=True), r"percent, expected 0\.01 to 20: is it percent"),
    "NaN": (array(bold_TP() * np.nan), "none of 8 channels is finite"),
    "too short": (array(bold_TP()[:10]), r"20\.0 s, expected at least 30 s"),
    "voxels": (array(bold_TP(), positions_mm() * 4), "expected 10 to 150: MNI millimetres, no voxels or metres"),
    "metres": (array(bold_TP(), positions_mm() / 1000), "MNI millimetres, no voxels or metres"),
    "no positions": (
        array(bold_TP(), positions_mm() * np.where(np.arange(8) < 3, 1, np.nan)[:, None]),
        r"3 of 8 channels are good and have a position .* expected at least 4",
    ),
    "no parcellation": (lambda model: model.encode_bold(bold_TP(), T_R), "expected a parcellation"),
    "no label image": (lambda model: model.encode_bold(images()[0], T_R), "expected a label image"),
    "one volume": (
        lambda model: model.encode_bold(images()[0].slicer[..., 0], T_R, images()[1], space=SPACE), "expected a 4-D"
    ),
    "labels of another place": (
        lambda model: model.encode_bold(images()[0], T_R, "absent.nii.gz"), "absent.nii.gz: no such label image"
    ),
    "no space": (lambda model: model.encode_bold(images()[0], T_R, images()[1]), r"which \(image_space, or space=\)"),
    "no file": (lambda model: model.encode_bold("absent.nii.gz", T_R, images()[1]), "absent.nii.gz: no such file"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_clear_line(pretrained: PretrainedMCSP, name: str) -> None:
    make, pattern = MISTAKES[name]
    with pytest.raises(ValueError, match=pattern) as error:
        make(pretrained)
    assert "\n" not in str(error.value)
    assert not str(error.value).startswith("unreadable") and "ValueError" not in str(error.value)


def test_confounds_of_pretraining_are_asked_for(pretrained: PretrainedMCSP, tmp_path: Path) -> None:
    values = dict(pretrained.preprocessing)
    values["cleaning"] = {**values["cleaning"], "fmri": {**values["cleaning"]["fmri"], "confounds": ["motion"]}}
    write_pretrained(pretrained, tmp_path / "model", values)
    model = from_pretrained(tmp_path / "model")
    image, labels = images()
    with pytest.raises(RecordingError, match="pass the path of the image beside them"):
        model.encode_bold(image, T_R, labels)
    nibabel.save(image, tmp_path / "bold.nii.gz")
    with pytest.raises(RecordingError, match=r"no \*_desc-confounds_timeseries\.tsv beside it"):
        model.encode_bold(tmp_path / "bold.nii.gz", T_R, labels, space=SPACE)
    assert warns(model.encode_bold(bold_TP(), T_R, positions_mm()).report, "in pretraining: motion")


def test_values_without_a_mean_are_taken_by_their_shape_alone(pretrained: PretrainedMCSP) -> None:
    x_TP = (bold_TP() - bold_TP().mean(axis=0)) / 3
    one = pretrained.encode_bold(x_TP, T_R, positions_mm())
    other = pretrained.encode_bold(250 * x_TP, T_R, positions_mm())
    assert difference(other.window_features, one.window_features) < 1e-5
    assert "arbitrary" in str(one.report)
    assert warns(one.report, "values in a.u.; in pretraining percent")


def test_an_atlas_by_name_as_nilearn_returned_it_or_of_a_file_places_a_series(
    pretrained: PretrainedMCSP, tmp_path: Path
) -> None:
    x_TP = 1000 + np.random.default_rng(0).standard_normal((VOLUMES, 264))
    places = datasets.fetch_coords_power_2011()
    expected = pretrained.encode_bold(x_TP, T_R, places["rois"][["x", "y", "z"]].to_numpy())
    np.save(tmp_path / "series.npy", x_TP)
    np.savetxt(tmp_path / "series.csv", x_TP, delimiter=",")
    for bold, parcellation in (
        (x_TP, "Power2011"), (x_TP, places), (tmp_path / "series.npy", "Power2011"), (tmp_path / "series.csv", places)
    ):  # fmt: skip
        found = pretrained.encode_bold(bold, T_R, parcellation)
        assert difference(found.features, expected.features) < 1e-6


@pytest.mark.parametrize(("image_space", "atlas_space"), [("T1w", SPACE), (SPACE, "MNI152NLin2009cAsym")])
def test_an_image_and_an_atlas_of_different_spaces_are_refused(
    pretrained: PretrainedMCSP, tmp_path: Path, image_space: str, atlas_space: str
) -> None:
    image, labels = images()
    nibabel.save(image, path := tmp_path / f"sub-1_task-rest_space-{image_space}_desc-preproc_bold.nii.gz")
    nibabel.save(labels, atlas := tmp_path / f"space-{atlas_space}_dseg.nii.gz")
    for bold in (path, nibabel.load(path)):
        with pytest.raises(RecordingError) as error:
            pretrained.encode_bold(bold, T_R, atlas)
        assert error.value.reason == "label-space-mismatch"


def test_the_atlas_of_the_pretraining_comes_with_the_model(of_corpus: PretrainedMCSP, corpus_dir: Path) -> None:
    for known in of_corpus.preprocessing["parcellations"]:
        values_TP = 1000 + np.random.default_rng(0).standard_normal((VOLUMES + 10, known["parcels"])).cumsum(axis=0)
        by_name = of_corpus.encode_bold(values_TP, T_R, "pretraining", require_known_parcellation=True)
        by_place = of_corpus.encode_bold(values_TP, T_R, np.array(known["positions_mm"]))
        np.testing.assert_array_equal(by_name.features, by_place.features)
        assert f"as in pretraining ({known['sites'][0]})" in str(by_name.report)
        path = next((corpus_dir.parent / "bids" / known["sites"][0]).glob("sub-*/func/*_timeseries.tsv"))
        name = f"pretraining:{known['sha256'][:12]}"
        named = of_corpus.encode_bold(path, parcellation=name, require_known_parcellation=True)
        np.testing.assert_array_equal(named.features, of_corpus.encode_bold(path).features)
        with pytest.raises(ValueError, match=r"expected one in the export, found 2; it has pretraining:\w{12} \("):
            of_corpus.encode_bold(path, parcellation="pretraining")
    with pytest.raises(ValueError, match="expected one of 7 parcels in the export, found 0"):
        of_corpus.encode_bold(np.ones((VOLUMES, 7)), T_R, "pretraining")
    with pytest.raises(ValueError, match="label image"):
        of_corpus.encode_bold(images()[0], T_R, name, space=known["space"])


def test_maskers_of_nilearn_say_where_their_columns_are(pretrained: PretrainedMCSP) -> None:
    image, labels = images()
    masker = NiftiLabelsMasker(labels, standardize=None, resampling_target=None).fit()
    values_TP = masker.transform(image)
    expected = pretrained.encode_bold(values_TP, T_R, labels)
    np.testing.assert_array_equal(pretrained.encode_bold(values_TP, T_R, masker).features, expected.features)
    spheres = NiftiSpheresMasker(positions_mm().tolist(), radius=20)
    by_place = pretrained.encode_bold(bold_TP(), T_R, positions_mm())
    np.testing.assert_array_equal(pretrained.encode_bold(bold_TP(), T_R, spheres).features, by_place.features)
    with pytest.raises(ValueError, match=r"as func\[0\] of a Bunch; found another object"):
        pretrained.encode_bold(Bunch(func=["run.nii.gz"]), T_R, labels)
