"""Attacks by a recording or a dataset: files that take their values from elsewhere, links out of the dataset, the key.

Covers: data_sharding/clean/hdf5.py, data_sharding/bids/outside.py, data_sharding/clean/child.py
"""

import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io

from mcsp.config import CorpusConfig
from mcsp.data_sharding.bids.find import find_recordings, find_sites
from mcsp.data_sharding.bids.reasons import RecordingError
from mcsp.data_sharding.bids.write import write_eeg, write_json
from mcsp.data_sharding.build.corpus import build_corpus
from mcsp.data_sharding.clean.hdf5 import require_own_values
from mcsp.data_sharding.clean.read import ReadingProcess
from mcsp.data_sharding.clean.readers import read_recording
from mcsp.data_sharding.store.index import read_rejected
from tests.data_sharding.conftest import CHANNELS, DESCRIPTION, KEY, eeg_uv

SIDECAR = {"SamplingFrequency": 250, "PowerLineFrequency": 50}


def hostile(path: Path, kind: str, target: Path) -> Path:
    """An HDF5 file whose `data` comes from ``target`` in one of the ways that HDF5 has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["sound"] = np.arange(3)
        if kind == "external storage":
            file.create_dataset("data", shape=(64,), dtype="u1", external=[(str(target), 0, 64)])
        elif kind == "virtual dataset":
            layout = h5py.VirtualLayout(shape=(64,), dtype="u1")
            layout[:] = h5py.VirtualSource(str(target), "data", shape=(64,))
            file.create_virtual_dataset("data", layout)
        elif kind == "external link":
            file.create_group("EEG")["data"] = h5py.ExternalLink(str(target), "/data")
        else:
            file.create_group("EEG")["data"] = h5py.SoftLink("/sound")
    return path


@pytest.mark.parametrize("kind", ["external storage", "virtual dataset", "external link", "soft link"])
def test_an_hdf5_file_that_takes_values_from_elsewhere_is_refused(tmp_path: Path, kind: str) -> None:
    path = hostile(tmp_path / "sub-1_task-rest_eeg.set", kind, Path("/proc/self/environ"))
    with pytest.raises(
        RecordingError, match=r"^sub-1_task-rest_eeg.set: .*, expected values in the file itself$"
    ) as why:
        require_own_values(path)
    assert why.value.reason == "unsafe-file"


def test_a_sound_hdf5_file_passes_also_one_that_holds_itself(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "sound.set", "w") as file:
        file["EEG/data"] = np.arange(6)
        file["EEG/again"] = file["EEG"]
    require_own_values(tmp_path / "sound.set")
    (tmp_path / "other.set").write_bytes(b"MATLAB 5.0 MAT-file")
    require_own_values(tmp_path / "other.set")


def test_the_key_is_in_no_published_byte_of_a_build_with_a_hostile_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "bids" / "clinic"
    write_json(root / "dataset_description.json", DESCRIPTION)
    write_eeg(root, "1", "rest", eeg_uv(), CHANNELS, SIDECAR)
    hostile(root / "sub-3/eeg/sub-3_task-rest_eeg.set", "external storage", Path("/proc/self/environ"))
    outside = write_eeg(tmp_path / "other", "9", "rest", eeg_uv(), CHANNELS, SIDECAR)
    link = root / "sub-4/eeg/sub-4_task-rest_eeg.edf"
    link.parent.mkdir(parents=True)
    link.symlink_to(outside)
    monkeypatch.setenv("MCSP_SUBJECT_KEY", KEY)
    out = tmp_path / "corpus"
    build_corpus(CorpusConfig(bids_root=tmp_path / "bids", out_dir=out, max_quarantined=1.0, workers=2))
    assert {r.reason for r in read_rejected(out)} == {"unsafe-file", "outside-dataset"}
    for file in (path for path in out.rglob("*") if path.is_file()):
        content = file.read_bytes()
        assert KEY.encode() not in content and b"MCSP_SUBJECT_KEY" not in content, file
        assert np.frombuffer(KEY.encode(), "u1").astype("<f2").tobytes() not in content, file


def test_the_reading_process_has_neither_the_key_nor_other_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MCSP_SUBJECT_KEY", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    config = CorpusConfig(bids_root=tmp_path, out_dir=tmp_path)
    write_json(tmp_path / "site" / "dataset_description.json", DESCRIPTION)
    write_eeg(tmp_path / "site", "1", "rest", eeg_uv(), CHANNELS, SIDECAR)
    (site,) = find_sites(config)
    with ReadingProcess(config) as process:
        process.read(find_recordings(site)[0])
        assert process.process is not None
        seen = Path(f"/proc/{process.process.pid}/environ").read_bytes()
    assert b"PATH=" in seen and KEY.encode() not in seen and b"secret" not in seen


def test_the_builder_overwrites_the_key_that_it_was_started_with() -> None:
    program = """
import os
from pathlib import Path
from mcsp.data_sharding.build.pseudonyms import without_key_in_environment
key = os.environ["MCSP_SUBJECT_KEY"]
assert key.encode() in Path("/proc/self/environ").read_bytes()
with without_key_in_environment():
    assert "MCSP_SUBJECT_KEY" not in os.environ
    assert key.encode() not in Path("/proc/self/environ").read_bytes()
assert os.environ["MCSP_SUBJECT_KEY"] == key
"""
    import os

    environment = {**os.environ, "MCSP_SUBJECT_KEY": KEY}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)


@pytest.mark.parametrize("through", ["link", "header"])
def test_a_recording_outside_of_its_dataset_is_refused_unless_its_folder_is_trusted(
    tmp_path: Path, through: str
) -> None:
    root, other = tmp_path / "bids" / "clinic", tmp_path / "elsewhere"
    write_json(root / "dataset_description.json", DESCRIPTION)
    outside = write_eeg(other, "9", "rest", eeg_uv(), CHANNELS, SIDECAR)
    folder = root / "sub-1" / "eeg"
    folder.mkdir(parents=True)
    if through == "link":
        (folder / "sub-1_task-rest_eeg.edf").symlink_to(outside)
        write_json(folder / "sub-1_task-rest_eeg.json", SIDECAR)
    else:
        x_CT = eeg_uv().astype("<f4")
        x_CT.T.tofile(other / "x.fdt")
        eeg = {
            "data": "../../../../elsewhere/x.fdt", "nbchan": len(CHANNELS), "pnts": x_CT.shape[1], "trials": 1,
            "srate": 250.0, "xmin": 0.0, "event": [], "chanlocs": np.array([(c,) for c in CHANNELS], [("labels", "O")]),
        }  # fmt: skip
        scipy.io.savemat(folder / "sub-1_task-rest_eeg.set", {"EEG": eeg})

    def read(**options: object) -> None:
        config = CorpusConfig(bids_root=tmp_path / "bids", out_dir=tmp_path / "out", **options)
        (site,) = find_sites(config)
        (ref,) = find_recordings(site)
        read_recording(ref, config)

    with pytest.raises(RecordingError, match=r"lies outside of its dataset, .* trusted_link_targets") as why:
        read()
    assert why.value.reason == "outside-dataset"
    read(trusted_link_targets=[other])
