"""Attacks by a recording or a dataset: files that take their values from elsewhere, links out of the dataset, the key.

Covers: data_sharding/clean/child.py
"""

import io
import json
import os
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import h5py
import mne
import numpy as np
import pytest
import scipy.io

from mcsp.config import CorpusConfig
from mcsp.data_sharding.bids.find import find_recordings, find_sites
from mcsp.data_sharding.bids.reasons import RecordingError
from mcsp.data_sharding.bids.write import write_eeg, write_json
from mcsp.data_sharding.clean.child import read_recording
from mcsp.data_sharding.clean.eeg_headers import require_own_values
from mcsp.data_sharding.clean.landlock import landlock_version
from mcsp.data_sharding.clean.read import ReadingProcess
from mcsp.data_sharding.store.index import read_rejected
from mcsp.provenance import ROOT
from tests.data_sharding.conftest import CHANNELS, DESCRIPTION, KEY, eeg_uv
from tests.security.published import published_bytes

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


def matlab_73(path: Path, target: Path, n_bytes: int) -> Path:
    """An EEGLAB file of MATLAB 7.3 that MNE takes for a sound one; its samples are the bytes of ``target``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    n_times = n_bytes // len(CHANNELS)
    with h5py.File(path, "w", userblock_size=512) as file:
        eeg = file.create_group("EEG")
        for name, value in {"nbchan": len(CHANNELS), "pnts": n_times, "trials": 1, "srate": 250.0, "xmin": 0.0}.items():
            eeg[name] = np.array([[value]], "f8")
        shape, where = (n_times, len(CHANNELS)), [(str(target), 0, n_times * len(CHANNELS))]
        eeg.create_dataset("data", shape=shape, dtype="u1", external=where)
        eeg["event"] = np.zeros((0, 0))
        labels = eeg.create_group("chanlocs").create_dataset("labels", (len(CHANNELS), 1), h5py.ref_dtype)
        for i, name in enumerate(CHANNELS):
            file[f"#refs#/{i}"] = np.array([[ord(letter)] for letter in name], "u2")
            file[f"#refs#/{i}"].attrs["MATLAB_class"] = np.bytes_("char")
            labels[i, 0] = file[f"#refs#/{i}"].ref
    with open(path, "r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")
    return path


def test_the_search_finds_a_key_that_was_published(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "train-00000.tar", "w") as tar:
        for name, content in {
            "a.json": json.dumps({"recordings": [{"member": "a.eeg-0.npy", "scale": 0.5}]}).encode(),
            "a.eeg-0.npy": array_bytes(2 * np.frombuffer(KEY.encode(), "u1").reshape(-1, 4).astype("<f2")),
        }.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    assert any(KEY.encode() in content for _, content in published_bytes(tmp_path))


def array_bytes(stored: np.ndarray) -> bytes:
    sink = io.BytesIO()
    np.save(sink, stored)
    return sink.getvalue()


def test_the_key_is_in_no_published_byte_of_a_build_with_a_hostile_file(tmp_path: Path) -> None:
    """The builder is started with the key in its environment, as an operator does, and reads what is to betray it."""
    root, secret = tmp_path / "bids" / "clinic", tmp_path / "secret"
    secret.write_bytes(KEY.encode() * 500)
    write_json(root / "dataset_description.json", DESCRIPTION)
    write_eeg(root, "1", "rest", eeg_uv(), CHANNELS, SIDECAR)
    for subject, target in {"2": Path("/proc/self/environ"), "3": secret}.items():
        path = matlab_73(root / f"sub-{subject}/eeg/sub-{subject}_task-rest_eeg.set", target, 32_000)
        write_json(path.with_suffix(".json"), SIDECAR)
    raw = mne.io.read_raw_eeglab(path, verbose="ERROR")  # the attack is real: MNE reads the secret
    assert bytes((raw.get_data()[:, :40] * 1e6).round().astype("u1").T.ravel())[:64] == KEY.encode()
    outside = write_eeg(tmp_path / "other", "9", "rest", eeg_uv(), CHANNELS, SIDECAR)
    link = root / "sub-4/eeg/sub-4_task-rest_eeg.edf"
    link.parent.mkdir(parents=True)
    link.symlink_to(outside)
    out = tmp_path / "corpus"
    command = [sys.executable, str(ROOT / "launchers/build_corpus.py"), f"bids_root={tmp_path / 'bids'}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MCSP_SUBJECT_KEY": KEY}
    options = [f"out_dir={out}", "max_quarantined=1.0", "workers=2", "on_error=warn"]
    done = subprocess.run([*command, *options], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(r.reason for r in read_rejected(out)) == ["outside-dataset", "unsafe-file", "unsafe-file"]
    assert "'/EEG/data' is stored in another file" in done.stderr and KEY not in done.stderr
    assert done.stderr.count("no Landlock here") == (landlock_version() == 0)
    for name, content in published_bytes(out):
        assert KEY.encode() not in content and b"MCSP_SUBJECT_KEY" not in content, name


@pytest.mark.skipif(landlock_version() == 0, reason="this kernel offers no Landlock")
def test_the_kernel_keeps_the_reading_process_in_the_folder_of_its_recording(tmp_path: Path) -> None:
    """Where no check of ours refuses it: a header names a file of another subject, and of another folder."""
    root = tmp_path / "bids" / "clinic"
    write_json(root / "dataset_description.json", DESCRIPTION)
    x_CT = eeg_uv().astype("<f4")
    for place in (root / "sub-2/eeg", tmp_path / "elsewhere", root / "sub-3/eeg"):
        place.mkdir(parents=True)
        x_CT.T.tofile(place / "x.fdt")
    places = {"1": "../../../../elsewhere/x.fdt", "2": "x.fdt", "4": "../../sub-3/eeg/x.fdt"}
    for subject, data in places.items():
        eeglab(root / f"sub-{subject}/eeg/sub-{subject}_task-rest_eeg.set", data, x_CT.shape[1])
    config = CorpusConfig(bids_root=tmp_path / "bids", out_dir=tmp_path / "out")
    site = replace(find_sites(config)[0], trusted=None)  # nothing is refused by its name
    refs = {ref.entities["subject"]: ref for ref in find_recordings(site)}
    with ReadingProcess(config) as process:
        for subject in ("1", "2", "4", "2"):
            if subject == "2":
                assert len(process.read(refs[subject]).channels) == len(CHANNELS)
                continue
            with pytest.raises(RecordingError, match=r"^x.fdt: cannot be opened \(Permission denied\)$") as why:
                process.read(refs[subject])
            assert why.value.reason == "unreadable"
            read_recording(refs[subject], config)  # here, without limits, it is read


def eeglab(path: Path, data: str, n_times: int) -> None:
    """An EEGLAB file of MATLAB 5 whose samples lie in ``data``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    eeg = {
        "data": data, "nbchan": len(CHANNELS), "pnts": n_times, "trials": 1, "srate": 250.0, "xmin": 0.0, "event": [],
        "chanlocs": np.array([(c,) for c in CHANNELS], [("labels", "O")]),
    }  # fmt: skip
    scipy.io.savemat(path, {"EEG": eeg})


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
        eeglab(folder / "sub-1_task-rest_eeg.set", "../../../../elsewhere/x.fdt", x_CT.shape[1])

    def read(**options: object) -> None:
        config = CorpusConfig(bids_root=tmp_path / "bids", out_dir=tmp_path / "out", **options)
        (site,) = find_sites(config)
        (ref,) = find_recordings(site)
        read_recording(ref, config)

    with pytest.raises(RecordingError, match=r"lies outside of its dataset, .* trusted_link_targets") as why:
        read()
    assert why.value.reason == "outside-dataset"
    read(trusted_link_targets=[other])
