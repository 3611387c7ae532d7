"""BOLD in the layouts of pipelines: xcp_d, C-PAC, HCP, fMRIPrep; denoised series and those that were censored."""

import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

from mcsp.config import CorpusConfig, FmriConfig
from mcsp.data_sharding.bids.find import find_recordings
from mcsp.data_sharding.bids.reasons import RecordingError
from mcsp.data_sharding.bids.ref import RecordingRef, Site, acquisition_time, atlas_files, inputs_of
from mcsp.data_sharding.bids.write import write_json, write_parcellated_bold, write_tsv
from mcsp.data_sharding.build.plan import make_plan
from mcsp.data_sharding.clean.fmri import detrend, read_fmri
from mcsp.data_sharding.clean.recording import CleanRecording, robust_amplitude
from mcsp.data_sharding.parcels.atlases import named_atlas
from mcsp.schema import KEY_VARIABLE, SCALE_FREE
from tests.data_sharding.clean.test_fmri_files import T_R, VOLUMES, bold_PT, expected_TP, kept_of, write_image
from tests.data_sharding.conftest import DESCRIPTION, KEY

NAMES = [f"LH_Vis_{i}" for i in range(1, 5)]
AFFINE = np.array([[6.0, 0, 0, -90], [0, 6, 0, -126], [0, 0, 6, -72], [0, 0, 0, 1]])


def denoised_TP(seed: int = 3) -> np.ndarray:
    """As a pipeline leaves it: without mean and line, parcels of different amplitude."""
    x_TP = np.random.default_rng(seed).standard_normal((VOLUMES, len(NAMES))) * [3, 10, 20, 40]
    return detrend(x_TP)


def only_ref(root: Path) -> RecordingRef:
    (ref,) = find_recordings(Site("site", root, False, None))
    return ref


def read(root: Path, **options: object) -> CleanRecording:
    return read_fmri(only_ref(root), FmriConfig.parse(options, "test"), min_seconds=30)


def reason(root: Path, **options: object) -> str:
    with pytest.raises(RecordingError) as error:
        read(root, **options)
    return error.value.reason


def write_labels(path: Path) -> np.ndarray:
    """Four parcels of one voxel; their centres in MNI space ``(4, 3)``."""
    voxels = np.zeros((31, 37, 31), np.int16)
    places = np.array([[5, 10, 15], [25, 10, 15], [5, 30, 15], [25, 30, 20]])
    for label, place in enumerate(places, 1):
        voxels[tuple(place)] = label
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, AFFINE), path)
    return nibabel.affines.apply_affine(AFFINE, places)


def xcp_d(root: Path, x_TP: np.ndarray, atlases: str = "sourcedata/atlases") -> np.ndarray:
    """A table as xcp_d writes it, its atlas in a folder of its own, and the image's sidecar; places of the parcels."""
    write_json(root / "dataset_description.json", {**DESCRIPTION, "DatasetType": "derivative"})
    func = root / "sub-1/func"
    stem = "sub-1_task-rest_space-MNI152NLin2009cAsym"
    table = func / f"{stem}_seg-4S156Parcels_stat-mean_timeseries.tsv"
    write_tsv(table, NAMES, x_TP.tolist())
    write_json(table.with_suffix(".json"), {"SamplingFrequency": "TR", "Sources": ["bids:preprocessed:x"]})
    write_json(func / f"{stem}_desc-denoised_bold.json", {"RepetitionTime": T_R})
    folder = root / atlases / "atlas-4S156Parcels"
    rows = [(i, name, "Vis") for i, name in enumerate(NAMES, 1)]
    write_tsv(folder / "atlas-4S156Parcels_dseg.tsv", ("index", "label", "network_label"), rows)
    other = folder.with_name("atlas-Glasser") / "atlas-Glasser_dseg.tsv"
    write_tsv(other, ("index", "label"), [(1, "L_V1")])
    return write_labels(folder / "atlas-4S156Parcels_space-MNI152NLin2009cAsym_res-01_dseg.nii.gz")


@pytest.mark.parametrize("atlases", ["sourcedata/atlases", "atlases"])
def test_a_denoised_table_of_xcp_d_is_stored_in_arbitrary_units_at_its_places(tmp_path: Path, atlases: str) -> None:
    places_P3 = xcp_d(tmp_path, denoised_TP(), atlases)
    recording = read(tmp_path)
    assert (recording.unit, recording.sfreq, recording.channels) == (SCALE_FREE, 1 / T_R, NAMES)
    np.testing.assert_allclose(recording.positions_C3, places_P3)
    assert recording.space == "MNI152NLin2009cAsym"
    scale = recording.quality["robust_scale"]
    np.testing.assert_allclose(recording.x_TC * scale, denoised_TP(), rtol=1e-5, atol=1e-4)
    assert np.median(robust_amplitude(recording.x_TC.T)) == pytest.approx(1)
    assert "amplitude" not in recording.quality  # nothing that could be compared
    files = inputs_of(only_ref(tmp_path))
    assert any(f.name.endswith("desc-denoised_bold.json") for f in files)
    assert {f.name for f in files if "atlas-" in f.name} == {
        "atlas-4S156Parcels_dseg.tsv", "atlas-4S156Parcels_space-MNI152NLin2009cAsym_res-01_dseg.nii.gz"
    }  # fmt: skip
    assert [f.name for f in atlas_files(only_ref(tmp_path), "Glasser")] == ["atlas-Glasser_dseg.tsv"]


def test_the_scale_of_a_denoised_series_does_not_matter(tmp_path: Path) -> None:
    xcp_d(tmp_path, denoised_TP())
    one = read(tmp_path)
    shutil.rmtree(tmp_path / "sub-1")
    xcp_d(tmp_path, 7.3 * denoised_TP() + 1e-9)
    np.testing.assert_allclose(read(tmp_path).x_TC, one.x_TC, rtol=1e-5, atol=1e-6)


def test_the_censored_output_of_xcp_d_comes_back_onto_its_clock(tmp_path: Path) -> None:
    kept = np.setdiff1d(np.arange(VOLUMES), [*range(20, 28), 50])
    xcp_d(tmp_path, denoised_TP()[kept])
    func = tmp_path / "sub-1/func"
    outlier = np.ones(VOLUMES, int)
    outlier[kept] = 0
    write_tsv(func / "sub-1_task-rest_outliers.tsv", ("framewise_displacement",), [(v,) for v in outlier])
    write_tsv(func / "sub-1_task-rest_motion.tsv", ("framewise_displacement",), [(0.1 + v,) for v in outlier])
    recording = read(tmp_path)
    assert len(recording.x_TC) == VOLUMES and recording.valid_spans == [0, 20, 28, 50, 51, VOLUMES]
    np.testing.assert_array_equal(kept_of(recording), kept)
    expected_KP = detrend(denoised_TP()[kept])
    np.testing.assert_allclose(
        recording.x_TC[kept] * recording.quality["robust_scale"], expected_KP, rtol=1e-5, atol=1e-4
    )
    assert not recording.x_TC[20:28].any() and recording.quality["max_fd_mm"] == 1.1
    # All volumes, of which xcp_d interpolated some.
    xcp_d(tmp_path, denoised_TP())
    assert read(tmp_path).valid_spans == [0, 20, 28, 50, 51, VOLUMES]
    xcp_d(tmp_path, denoised_TP()[:40])
    assert reason(tmp_path) == "confounds-mismatch"


def test_images_of_a_run_must_agree_on_t_r(tmp_path: Path) -> None:
    xcp_d(tmp_path, denoised_TP())
    write_json(tmp_path / "sub-1/func/sub-1_task-rest_desc-other_bold.json", {"RepetitionTime": 3.0})
    assert reason(tmp_path) == "t_r-mismatch"
    for file in (tmp_path / "sub-1/func").glob("*_bold.json"):
        file.unlink()
    assert reason(tmp_path) == "missing-t_r"
    write_json(tmp_path / "sub-1/func/sub-1_task-go_bold.json", {"RepetitionTime": T_R})  # of another run
    assert reason(tmp_path) == "missing-t_r"


def test_c_pacs_text_series_takes_t_r_from_the_raw_run_and_places_from_its_labels(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    write_json(raw / "dataset_description.json", DESCRIPTION)
    write_json(raw / "task-rest_bold.json", {"RepetitionTime": T_R})
    root = raw / "derivatives/cpac"
    write_json(root / "dataset_description.json", {**DESCRIPTION, "DatasetType": "derivative"})
    func = root / "sub-1/ses-1/func"
    func.mkdir(parents=True)
    name = "sub-1_ses-1_task-rest_run-1_space-MNI152NLin6ASym_atlas-CC4_desc-Mean_timeseries.1D"
    header = "\t".join(f"#{i}" for i in range(1, 5))
    np.savetxt(func / name, denoised_TP(), fmt="%.6g", delimiter="\t", header=header, comments="")
    write_json(func / name.replace(".1D", ".json"), {"Sources": ["x"]})
    rows = [(i, f"CC4_{i}", 10 * i, -10 * i, 20) for i in range(1, 5)]
    write_tsv(root / "atlas-CC4_dseg.tsv", ("index", "name", "x", "y", "z"), rows)
    for site in (raw, root):
        recording = read(site)
        assert recording.sfreq == 1 / T_R and recording.unit == SCALE_FREE
        assert recording.channels == ["CC4_1", "CC4_2", "CC4_3", "CC4_4"]
        np.testing.assert_array_equal(recording.positions_C3[3], [40, -40, 20])
        correlation = np.corrcoef(recording.x_TC[:, 2], denoised_TP()[:, 2])[0, 1]
        assert correlation > 0.99999


def test_hcps_parcels_of_the_surface_take_their_places_from_the_atlas_of_their_names(tmp_path: Path) -> None:
    write_json(tmp_path / "task-rest_timeseries.json", {"RepetitionTime": T_R})
    func = tmp_path / "sub-1/func"
    func.mkdir(parents=True)
    vertices = [{"CIFTI_STRUCTURE_CORTEX_LEFT": np.arange(3 * i, 3 * i + 3)} for i in range(4)]
    none = [np.empty((0, 3), int)] * 4
    axis = nibabel.cifti2.ParcelsAxis(NAMES, none, vertices, nvertices={"CIFTI_STRUCTURE_CORTEX_LEFT": 32492})
    series = nibabel.cifti2.SeriesAxis(0, T_R, VOLUMES, "SECOND")
    image = nibabel.Cifti2Image(bold_PT().T.astype(np.float32), header=(series, axis))
    nibabel.save(image, func / "sub-1_task-rest_space-fsLR_seg-Vis_den-91k_stat-mean_timeseries.ptseries.nii")
    assert reason(tmp_path) == "unknown-parcellation"
    write_tsv(
        tmp_path / "seg-Vis_dseg.tsv",
        ("index", "name", "x", "y", "z"),
        [(i, n, -9 * i, 8, 7) for i, n in enumerate(NAMES, 1)],
    )
    recording = read(tmp_path)
    assert recording.unit == "percent" and recording.positions_C3[3].tolist() == [-36, 8, 7]
    np.testing.assert_allclose(recording.x_TC, expected_TP(bold_PT()), atol=1e-3)


def test_parcels_of_cifti_with_one_name_are_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "task-rest_timeseries.json", {"RepetitionTime": T_R})
    func = tmp_path / "sub-1/func"
    func.mkdir(parents=True)
    voxels = [np.array([[i, i, i]]) for i in range(4)]
    axis = nibabel.cifti2.ParcelsAxis(["a", "a", "b", "c"], voxels, [{}] * 4, affine=AFFINE, volume_shape=(31, 37, 31))
    series = nibabel.cifti2.SeriesAxis(0, T_R, VOLUMES, "SECOND")
    image = nibabel.Cifti2Image(bold_PT().T.astype(np.float32), header=(series, axis))
    nibabel.save(image, func / "sub-1_task-rest_space-fsLR_seg-A_timeseries.ptseries.nii")
    assert reason(tmp_path) == "bad-table"


def test_an_atlas_by_name_places_a_table(tmp_path: Path) -> None:
    write_json(tmp_path / "dataset_description.json", DESCRIPTION)
    x_PT = 1000 + np.random.default_rng(0).standard_normal((264, VOLUMES))
    write_parcellated_bold(tmp_path, "1", "Power", [str(i) for i in range(1, 265)], x_PT, {"RepetitionTime": T_R})
    assert reason(tmp_path) == "unknown-parcellation"
    recording = read(tmp_path, atlas="Power2011")
    assert recording.channels[0] == "Power2011-1" and recording.positions_C3[0].tolist() == [-25, -98, -12]
    with pytest.raises(ValueError, match="expected a name like Schaefer2018_400"):
        CorpusConfig.parse({"bids_root": tmp_path, "out_dir": "x", "fmri": {"atlas": "Shaefer"}}, "test")


def test_percent_that_no_blood_flow_explains_is_a_wrong_unit(tmp_path: Path) -> None:
    write_json(tmp_path / "dataset_description.json", DESCRIPTION)
    write_tsv(tmp_path / "seg-A_dseg.tsv", ("name", "x", "y", "z"), [(n, 30, 10 * i, 0) for i, n in enumerate(NAMES)])
    path = write_parcellated_bold(
        tmp_path, "1", "A", NAMES, 30 * denoised_TP().T, {"RepetitionTime": T_R, "Units": "percent"}
    )
    assert reason(tmp_path) == "wrong-unit"
    write_json(path.with_suffix(".json"), {"RepetitionTime": T_R})
    assert read(tmp_path).unit == SCALE_FREE


def fmriprep(root: Path, space: str | None = "MNI152NLin6Asym") -> None:
    write_json(root / "dataset_description.json", DESCRIPTION)
    path = write_image(root)
    name = path.name.replace("space-MNI152NLin6Asym_", f"space-{space}_" if space else "")
    path.rename(path.with_name(name))


@pytest.mark.parametrize("space", ["T1w", None])
def test_an_image_of_the_head_itself_is_refused_and_a_setting_says_what_is_known(
    tmp_path: Path, space: str | None
) -> None:
    fmriprep(tmp_path, space)
    assert reason(tmp_path) == "label-space-mismatch"
    if space is None:
        assert read(tmp_path, image_space="MNI152NLin6Asym").space == "MNI152NLin6Asym"
    else:
        assert reason(tmp_path, image_space="MNI152NLin6Asym") == "label-space-mismatch"


def test_a_label_image_that_is_named_must_say_its_space(tmp_path: Path) -> None:
    fmriprep(tmp_path / "site")
    labels = tmp_path / "mine.nii.gz"
    shutil.move(tmp_path / "site/seg-S_dseg.nii.gz", labels)
    (ref,) = find_recordings(Site("site", tmp_path / "site", False, labels))
    for space, sound in ((None, False), ("MNI152NLin2009cAsym", False), ("MNI152NLin6Asym", True)):
        config = FmriConfig.parse({"label_space": space}, "test")
        if sound:
            np.testing.assert_allclose(read_fmri(ref, config, 30).x_TC, expected_TP(bold_PT()), atol=1e-3)
            continue
        with pytest.raises(RecordingError) as error:
            read_fmri(ref, config, 30)
        assert error.value.reason == "label-space-mismatch"


def test_an_image_without_orientation_is_refused(tmp_path: Path) -> None:
    fmriprep(tmp_path)
    path = next(tmp_path.rglob("*_bold.nii.gz"))
    image = nibabel.load(path)
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), None, image.header), path)
    assert reason(tmp_path) == "no-orientation"


@pytest.mark.parametrize("nested", [True, False], ids=["below the raw dataset", "as a site of its own"])
def test_a_derivative_began_when_its_raw_run_did(tmp_path: Path, nested: bool) -> None:
    write_json(tmp_path / "dataset_description.json", DESCRIPTION)
    func = tmp_path / "derivatives/fmriprep/sub-1/func"
    func.mkdir(parents=True)
    write_json(func.parents[1] / "dataset_description.json", DESCRIPTION)
    (func / "sub-1_task-rest_run-1_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz").touch()
    times = [("func/sub-1_task-rest_run-2_bold.nii.gz", "2019-05-06T11:00:00"),
             ("func/sub-1_task-rest_run-1_bold.nii.gz", "2019-05-06T10:00:08")]  # fmt: skip
    write_tsv(tmp_path / "sub-1/sub-1_scans.tsv", ("filename", "acq_time"), times)
    ref = only_ref(tmp_path if nested else func.parents[1])
    assert acquisition_time(ref) == 1557136808.0
    assert tmp_path / "sub-1/sub-1_scans.tsv" in inputs_of(ref)


def test_an_atlas_by_name_is_laid_over_images_of_its_own_space_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It never says the space of an image; of a run in several spaces that of the atlas is taken."""
    folder = tmp_path / "nilearn/schaefer_2018"
    folder.mkdir(parents=True)
    site = tmp_path / "site"
    fmriprep(site, "MNI152NLin2009cAsym")
    labels = nibabel.load(site / "seg-S_dseg.nii.gz")
    padded = nibabel.Nifti1Image(np.pad(np.asarray(labels.dataobj), [(0, 1)] * 3), labels.affine)
    nibabel.save(padded, folder / "Schaefer2018_100Parcels_7Networks_order_FSLMNI152_2mm.nii.gz")
    (site / "seg-S_dseg.nii.gz").unlink()
    lines = [f"{i}\t{name}\t0\t0\t0\t0\n" for i, name in enumerate(NAMES, 1)]
    (folder / "Schaefer2018_100Parcels_7Networks_order.txt").write_text("".join(lines))
    monkeypatch.setenv("NILEARN_DATA", str(tmp_path / "nilearn"))
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    named_atlas.cache_clear()
    fmri = {"atlas": "Schaefer2018_100Parcels_7Networks"}
    assert reason(site, **fmri) == "label-space-mismatch"
    image = next(site.rglob("*_bold.nii.gz"))
    shutil.copy(image, raw := image.with_name(image.name.replace("space-MNI152NLin2009cAsym_", "")))
    shutil.move(image, tmp_path / image.name)
    assert reason(site, **fmri) == "label-space-mismatch"  # nothing says where it is
    right = raw.with_name(image.name.replace("2009c", "6"))
    shutil.move(raw, right)
    shutil.move(tmp_path / image.name, image)
    config = CorpusConfig.parse({"bids_root": tmp_path, "out_dir": tmp_path / "out", "fmri": fmri}, "test")
    (ref,) = [ref for shard in make_plan(config, KEY.encode()).shards for s in shard.samples for ref in s.recordings]
    assert ref.path == right
    recording = read_fmri(ref, config.fmri, 30)
    assert (recording.space, recording.channels) == ("MNI152NLin6Asym", NAMES)
    np.testing.assert_allclose(recording.x_TC, expected_TP(bold_PT()), atol=1e-3)
