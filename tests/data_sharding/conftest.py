"""Small BIDS datasets made of files as labs have them, sound and damaged, and one corpus built from them."""

import json
import shutil
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import edfio
import mne
import nibabel
import numpy as np
import pytest

from mcsp.config import CorpusConfig
from mcsp.data_sharding.bids.write import (
    write_eeg,
    write_json,
    write_parcellated_bold,
    write_parcellation,
    write_participants,
    write_tsv,
)
from mcsp.data_sharding.build.corpus import build_corpus, ray_session
from mcsp.data_sharding.store.index import INDEX_NAME
from mcsp.schema import KEY_VARIABLE
from tests.conftest import folder_of

KEY = sha256(b"a key for tests 0").hexdigest()
CHANNELS = ["Fp1", "Fp2", "C3", "C4", "O1", "O2", "T3"]
PARCELS = ["left", "right", "middle"]
PLACES = [[-40.0, 0, 30], [40, 0, 30], [0, 20, 50]]
DESCRIPTION = {"Name": "test", "BIDSVersion": "1.10.0"}


def eeg_uv(seconds: float = 20, sfreq: float = 250, seed: int = 0) -> np.ndarray:
    """Ten Hz at 20 uV, a different phase per channel, with a little noise; (C, T)."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * sfreq)) / sfreq
    phases = np.arange(len(CHANNELS))[:, None]
    return 20 * np.sqrt(2) * np.sin(2 * np.pi * 10 * t + phases) + rng.standard_normal((len(CHANNELS), len(t)))


def bold(volumes: int = 120, seed: int = 0) -> np.ndarray:
    """A mean of 10,000 with one percent of noise; (P, T)."""
    return 10_000 * (1 + 0.01 * np.random.default_rng(seed).standard_normal((len(PARCELS), volumes)))


def write_paired_site(root: Path, subjects: int = 4) -> None:
    """EEG and BOLD that start together but for 3 s, with a label per subject."""
    write_json(root / "dataset_description.json", {**DESCRIPTION, "Simulated": True})
    write_parcellation(root, "Three", PARCELS, np.array(PLACES))
    names = [f"{i:02d}" for i in range(1, subjects + 1)]
    write_participants(root, {"diagnosis": {}, "secret": {}}, [(f"sub-{n}", "case", f"name-{n}") for n in names])
    for seed, n in enumerate(names):
        sidecar = {"SamplingFrequency": 250, "PowerLineFrequency": 50}
        eeg = write_eeg(root, n, "rest", eeg_uv(60, seed=seed), CHANNELS, sidecar)
        table = write_parcellated_bold(root, n, "Three", PARCELS, bold(40, seed), {"RepetitionTime": 1.5})
        starts = [(eeg, "2019-05-04T10:00:00"), (table, "2019-05-04T10:00:03")]
        folder = root / f"sub-{n}"
        rows = [(p.relative_to(folder).as_posix(), start) for p, start in starts]
        write_tsv(folder / f"sub-{n}_scans.tsv", ("filename", "acq_time"), rows)


def write_image(root: Path, subject: str, header_t_r: float = 2.0, sidecar_t_r: float | None = 2.0) -> Path:
    """A 4-D image of three labelled blocks; the third label of the parcellation lies outside."""
    rng = np.random.default_rng(int(subject))
    voxels = 800 * (1 + 0.01 * rng.standard_normal((6, 4, 4, 30)))
    image = nibabel.Nifti1Image(voxels.astype(np.float32), np.diag([3.0, 3, 3, 1]))
    image.header.set_xyzt_units("mm", "sec")
    image.header.set_zooms((3.0, 3.0, 3.0, header_t_r))
    path = root / f"sub-{subject}" / "func" / f"sub-{subject}_task-rest_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)
    if sidecar_t_r is not None:
        write_json(path.with_name(path.name.replace(".nii.gz", ".json")), {"RepetitionTime": sidecar_t_r})
    return path


def write_image_site(root: Path) -> None:
    """Two sound 4-D images, a label image with its table, and one image whose header speaks of milliseconds."""
    write_json(root / "dataset_description.json", DESCRIPTION)
    labels = np.zeros((6, 4, 4), dtype=np.int16)
    labels[:3], labels[3:] = 1, 7
    nibabel.save(nibabel.Nifti1Image(labels, np.diag([3.0, 3, 3, 1])), root / "seg-blocks_dseg.nii.gz")
    write_tsv(root / "seg-blocks_dseg.tsv", ("index", "name"), [(1, "front"), (7, "back"), (9, "absent")])
    write_image(root, "01")
    write_image(root, "02")
    write_image(root, "03", header_t_r=2000.0)


def write_damaged_site(root: Path) -> dict[str, str]:
    """One recording per way to fail; the reason that each file must get."""
    write_json(root / "dataset_description.json", DESCRIPTION)
    eeg = {"SamplingFrequency": 250, "PowerLineFrequency": "n/a"}
    reasons: dict[Path, str] = {}
    write_eeg(root, "01", "rest", eeg_uv(), CHANNELS, eeg)  # the sound one

    reasons[path := write_eeg(root, "02", "rest", eeg_uv(), CHANNELS, eeg)] = "unreadable"
    path.write_bytes(b"0       no EDF header" + bytes(300))
    signals = [
        edfio.EdfSignal(x, 250, label=c, physical_dimension="mV") for c, x in zip(CHANNELS, eeg_uv(), strict=True)
    ]
    reasons[path := write_eeg(root, "03", "rest", eeg_uv(), CHANNELS, eeg)] = "wrong-unit"
    edfio.Edf(signals).write(path)
    reasons[write_eeg(root, "04", "rest", eeg_uv(seconds=5), CHANNELS, eeg)] = "too-short"
    reasons[write_eeg(root, "05", "rest", np.full((7, 5000), 3.0), CHANNELS, eeg)] = "flat"
    reasons[write_eeg(root, "06", "rest", eeg_uv(), CHANNELS, {**eeg, "SamplingFrequency": 250})] = "sfreq-mismatch"
    write_json(root / "sub-06/eeg/sub-06_task-rest_eeg.json", {"SamplingFrequency": 500})
    reasons[write_eeg(root, "07", "rest", eeg_uv(), CHANNELS, eeg)] = "no-channels"
    write_tsv(root / "sub-07/eeg/sub-07_task-rest_channels.tsv", ("name", "type"), [(c, "EOG") for c in CHANNELS])
    reasons[path := root / "sub-08/eeg/sub-08_task-rest_eeg.fif"] = "non-finite"
    path.parent.mkdir(parents=True)
    raw = mne.io.RawArray(np.full((2, 5000), np.nan), mne.create_info(["C3", "C4"], 250, "eeg"), verbose="ERROR")
    raw.save(path, verbose="ERROR")
    reasons[path := write_eeg(root, "09", "rest", eeg_uv(), CHANNELS, eeg)] = "invalid-json"
    (path.parent / "sub-09_task-rest_eeg.json").write_text("{broken")

    t_r = {"RepetitionTime": 2.0}
    write_parcellation(root, "Three", PARCELS, np.array(PLACES))
    reasons[write_parcellated_bold(root, "21", "Three", PARCELS, bold(), {})] = "missing-t_r"
    reasons[write_parcellated_bold(root, "22", "Three", PARCELS, bold(), {"RepetitionTime": 2000})] = "t_r-mismatch"
    reasons[write_parcellated_bold(root, "23", "Three", PARCELS, bold() - 9_800, t_r)] = "no-baseline"
    reasons[path := write_parcellated_bold(root, "24", "Three", PARCELS, bold(), t_r)] = "bad-table"
    path.write_text(path.read_text().replace("9", "nine", 3))
    reasons[write_parcellated_bold(root, "25", "Three", PARCELS, bold() * np.nan, t_r)] = "non-finite"
    reasons[write_image(root, "26")] = "no-label-image"
    reasons[path := write_parcellated_bold(root, "27", "Three", PARCELS, bold(), t_r)] = "bad-encoding"
    path.write_bytes(b"\xff\xfe\x00broken")
    return {path.relative_to(root).as_posix(): reason for path, reason in reasons.items()}


@pytest.fixture(scope="session")
def bids_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sites: paired, images, damaged; ``damaged.json`` beside them has the expected reasons."""
    with folder_of("sites", tmp_path_factory) as folder:
        if not (folder / "damaged.json").is_file():
            write_paired_site(folder / "bids" / "paired")
            write_image_site(folder / "bids" / "images")
            write_json(folder / "damaged.json", write_damaged_site(folder / "bids" / "damaged"))
    return folder / "bids"


@pytest.fixture(scope="session")
def expected_reasons(bids_root: Path) -> dict[str, str]:
    return json.loads((bids_root.parent / "damaged.json").read_text())


@pytest.fixture(scope="session")
def ray_here() -> Iterator[None]:
    with ray_session(workers=2):
        yield


@pytest.fixture(autouse=True)
def subject_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)


def make_config(bids_root: Path, out_dir: Path) -> CorpusConfig:
    return CorpusConfig(
        bids_root=bids_root,
        out_dir=out_dir,
        participants_columns=["diagnosis"],
        split_fractions=(0.5, 0.25, 0.25),
        samples_per_shard=3,
        seed=2,  # so that the paired site is in every split
        max_quarantined=1.0,
        read_timeout_seconds=60,
    )


@pytest.fixture
def config(bids_root: Path, tmp_path: Path) -> CorpusConfig:
    """The three sites, into a fresh folder."""
    return make_config(bids_root, tmp_path / "corpus")


@pytest.fixture(scope="session")
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished corpus of the three sites; not to be changed."""
    with folder_of("built", tmp_path_factory) as folder, pytest.MonkeyPatch.context() as patch:
        if not (folder / "corpus" / INDEX_NAME).is_file():
            request.getfixturevalue("ray_here")
            patch.setenv(KEY_VARIABLE, KEY)
            build_corpus(make_config(request.getfixturevalue("bids_root"), folder / "corpus"))
    return folder / "corpus"


@pytest.fixture
def copied(built: Path, tmp_path: Path) -> Path:
    """A copy of the finished corpus, to be damaged."""
    shutil.copytree(built, tmp_path / "copy")
    return tmp_path / "copy"
