"""The same EEG in every file format that the builder reads, written by the libraries that users write it with."""

from pathlib import Path

import edfio
import mne
import mne_bids
import numpy as np
import pybv
import pytest

from mcsp.config import EegConfig
from mcsp.data_sharding.bids.find import Site, find_recordings
from mcsp.data_sharding.bids.write import write_json
from mcsp.data_sharding.clean.eeg import read_eeg
from mcsp.data_sharding.clean.eeg_channels import standard_positions_mm

CHANNELS = ["Fp1", "Fp2", "C3", "C4", "O1", "O2"]
SFREQ = 250.0


def signal_uv(sfreq: float) -> np.ndarray:
    """Sines well inside the pass band, so that cleaning leaves their values at the new rate."""
    t = np.arange(round(20 * sfreq)) / sfreq
    phases = np.random.default_rng(0).uniform(0, 2 * np.pi, (4, len(CHANNELS), 1))
    return sum(10 * np.sin(2 * np.pi * hz * t + phase) for hz, phase in zip((3, 10, 22, 37), phases, strict=True))


def write(path: Path, x_CT: np.ndarray) -> None:
    info = mne.create_info(CHANNELS, SFREQ, "eeg")
    match path.suffix:
        case ".edf":
            channels = zip(CHANNELS, x_CT, strict=True)
            edfio.Edf([edfio.EdfSignal(x, SFREQ, label=n, physical_dimension="uV") for n, x in channels]).write(path)
        case ".bdf":
            channels = zip(CHANNELS, x_CT, strict=True)
            edfio.Bdf([edfio.BdfSignal(x, SFREQ, label=n, physical_dimension="uV") for n, x in channels]).write(path)
        case ".vhdr":
            names = {"ch_names": CHANNELS, "fname_base": path.stem, "folder_out": path.parent}
            pybv.write_brainvision(data=x_CT * 1e-6, sfreq=SFREQ, **names)
        case ".set":
            mne.export.export_raw(path, mne.io.RawArray(x_CT * 1e-6, info, verbose="error"), verbose="error")
        case ".fif":
            mne.io.RawArray(x_CT * 1e-6, info, verbose="error").save(path, verbose="error")


@pytest.mark.parametrize("suffix", [".edf", ".bdf", ".vhdr", ".set", ".fif"])
@pytest.mark.filterwarnings("ignore:This filename")  # MNE's naming rule for FIF, which BIDS does not follow
def test_a_format_gives_the_values_that_were_written(tmp_path: Path, suffix: str) -> None:
    folder = tmp_path / "sub-1/eeg"
    folder.mkdir(parents=True)
    x_CT = signal_uv(SFREQ)
    write(folder / f"sub-1_task-rest_eeg{suffix}", x_CT)
    write_json(folder / "sub-1_task-rest_eeg.json", {"SamplingFrequency": SFREQ, "PowerLineFrequency": "n/a"})
    (ref,) = find_recordings(Site("site", tmp_path, False, None))
    recording = read_eeg(ref, EegConfig(), min_seconds=10)
    assert recording.channels == CHANNELS
    assert recording.x_TC.shape == (20 * 200, len(CHANNELS))
    expected = signal_uv(200.0)
    expected -= expected.mean(0)
    middle = slice(800, -800)  # the 0.5 Hz filter is 6.6 s long
    np.testing.assert_allclose(recording.x_TC[middle], expected.T[middle], atol=0.1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("format_", ["BrainVision", "EDF", "EEGLAB"])
def test_a_dataset_of_mne_bids_is_read_with_its_positions_and_line(tmp_path: Path, format_: str) -> None:
    info = mne.create_info(CHANNELS, SFREQ, "eeg")
    x_CT = signal_uv(SFREQ)
    raw = mne.io.RawArray(x_CT * 1e-6, info, verbose="error")
    raw.info["line_freq"] = 60
    raw.info["bads"] = ["C4"]
    raw.set_montage("standard_1005", verbose="error")
    raw.set_annotations(mne.Annotations([5.0, 9.0], [1.0, 0.5], ["BAD_motion", "eyes closed"]))
    path = mne_bids.BIDSPath(subject="01", session="a", task="rest", root=tmp_path, datatype="eeg")
    mne_bids.write_raw_bids(raw, path, format=format_, allow_preload=True, verbose="error")
    (ref,) = find_recordings(Site("site", tmp_path, False, None))
    assert ref.entities == {"subject": "01", "session": "a", "task": "rest"}
    recording = read_eeg(ref, EegConfig(), min_seconds=10)
    assert recording.channels == CHANNELS
    assert recording.channel_good_C.tolist() == [name != "C4" for name in CHANNELS]
    assert recording.valid_spans == [0, 1000, 1200, 4000]
    template = [standard_positions_mm()[name.lower()][1] for name in CHANNELS]
    np.testing.assert_allclose(recording.positions_C3, template, atol=0.5)
    expected = signal_uv(200.0)
    expected -= expected[[i for i, name in enumerate(CHANNELS) if name != "C4"]].mean(0)
    np.testing.assert_allclose(recording.x_TC[800:-800], expected.T[800:-800], atol=0.1)


@pytest.mark.filterwarnings("ignore:This filename")
def test_a_fif_recording_in_several_files_is_one(tmp_path: Path) -> None:
    x_CT = np.tile(signal_uv(SFREQ), (1, 40))
    raw = mne.io.RawArray(x_CT * 1e-6, mne.create_info(CHANNELS, SFREQ, "eeg"), verbose="error")
    folder = tmp_path / "sub-1/eeg"
    folder.mkdir(parents=True)
    path = folder / "sub-1_task-rest_eeg.fif"
    raw.save(path, split_size="2MB", split_naming="bids", buffer_size_sec=1, verbose="error")
    files = sorted(folder.glob("*.fif"))
    assert len(files) > 1
    (ref,) = find_recordings(Site("site", tmp_path, False, None))
    assert set(files) <= set(ref.inputs())
    assert len(read_eeg(ref, EegConfig(), min_seconds=10).x_TC) == 800 * 200
