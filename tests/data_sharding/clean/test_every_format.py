"""One build of every format that is read, each written by the library that people write it with, from many places."""

from collections.abc import Callable
from pathlib import Path

import mne
import mne_bids
import nibabel
import numpy as np
import pytest

from mcsp.commands.main import launcher
from mcsp.config import CorpusConfig
from mcsp.data_sharding.bids.write import write_json, write_parcellated_bold, write_parcellation
from mcsp.data_sharding.build.corpus import build_corpus
from mcsp.data_sharding.build.pseudonyms import subject_hash
from mcsp.data_sharding.store.reader import Corpus
from mcsp.schema import Recording
from tests.data_sharding.clean.test_eeg_files import CHANNELS, SFREQ, signal_uv, write
from tests.data_sharding.clean.test_fmri_confounds import write_confounds
from tests.data_sharding.clean.test_fmri_files import (
    NAMES,
    T_R,
    bold_PT,
    expected_TP,
    write_1d,
    write_dseg,
    write_image,
    write_ptseries,
)
from tests.data_sharding.conftest import DESCRIPTION, KEY

lint = launcher("lint")
EEG_FORMATS = (".edf", ".bdf", ".vhdr", ".set", ".fif")
MNE_BIDS_FORMATS = ("EDF", "BrainVision", "EEGLAB")
MARKER, FIRST_VOLUME_SECONDS = "R128", 4.2


def eeg_files(root: Path) -> None:
    """A subject per format; each has its own amplitude, so that none is taken for another's copy."""
    for i, suffix in enumerate(EEG_FORMATS):
        folder = root / f"sub-{i}/eeg"
        folder.mkdir(parents=True)
        write(folder / f"sub-{i}_task-rest_eeg{suffix}", (1 + i / 10) * signal_uv(SFREQ))
    write_json(root / "task-rest_eeg.json", {"SamplingFrequency": SFREQ, "PowerLineFrequency": "n/a"})


def raw(gain: float, montage: bool = True) -> mne.io.RawArray:
    made = mne.io.RawArray(gain * 1e-6 * signal_uv(SFREQ), mne.create_info(CHANNELS, SFREQ, "eeg"), verbose="error")
    made.info["line_freq"] = 60
    if montage:
        made.set_montage("standard_1005", verbose="error")
    return made


def mne_bids_dataset(root: Path) -> None:
    """As mne-bids writes a dataset: participants, scans with times, sidecars, electrodes, events."""
    for i, format_ in enumerate(MNE_BIDS_FORMATS):
        made = raw(2 + i / 10)
        made.set_meas_date(1_560_000_000)
        made.set_annotations(mne.Annotations([5.0], [1.0], ["BAD_motion"]))
        path = mne_bids.BIDSPath(subject=f"{i}", session="a", task="rest", root=root, datatype="eeg")
        mne_bids.write_raw_bids(made, path, format=format_, allow_preload=True, verbose="error")


def simultaneous(root: Path) -> None:
    """EEG of mne-bids with the scanner's marker among its events, and the BOLD of the same run."""
    made = raw(3)
    made.set_annotations(
        mne.Annotations([1.0, FIRST_VOLUME_SECONDS, FIRST_VOLUME_SECONDS + T_R], 0.0, ["S1", MARKER, MARKER])
    )
    path = mne_bids.BIDSPath(subject="1", task="rest", root=root, datatype="eeg")
    mne_bids.write_raw_bids(made, path, format="BrainVision", allow_preload=True, verbose="error")
    write_parcellation(root, "S", NAMES, np.diag([20.0, 30, 40, 50])[:, :3])
    write_parcellated_bold(root, "1", "S", NAMES, bold_PT(9), {"RepetitionTime": T_R})


def images(root: Path) -> None:
    """fMRIPrep's image with confounds beside it, and a label image with names and positions at the root."""
    write_image(root)
    write_dseg(root)
    write_confounds(root)


def text_series(root: Path) -> None:
    """AFNI's columns with a table of parcels."""
    write_1d(root, bold_PT(1))
    write_dseg(root)


def cifti_series(root: Path) -> None:
    """CIFTI parcels, which bring their positions."""
    write_ptseries(root, bold_PT(2))


def bare_image(root: Path) -> None:
    """An uncompressed image."""
    write_image(root, suffix=".nii")


SITES: dict[str, Callable[[Path], None]] = {
    "eeg-files": eeg_files, "mne-bids": mne_bids_dataset, "simultaneous": simultaneous, "fmriprep": images,
    "afni": text_series, "cifti": cifti_series, "nifti": bare_image,
}  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, ray_here: None) -> Corpus:
    """A corpus of all sites, no two of which lie in one folder; one recording of the second is cut short."""
    sites: dict[str, dict[str, object]] = {}
    for name, write_site in SITES.items():
        root = tmp_path_factory.mktemp(name) / "dataset"
        root.mkdir()
        write_site(root)
        if not (root / "dataset_description.json").exists():
            write_json(root / "dataset_description.json", DESCRIPTION)
        sites[name] = {"path": str(root)}
    sites["simultaneous"]["first_volume_event"] = MARKER
    # Another image of the same values would be a duplicate.
    image = next(Path(str(sites["nifti"]["path"])).rglob("*_bold.nii"))
    other = nibabel.load(image)
    nibabel.save(nibabel.Nifti1Image(2 * other.get_fdata(dtype=np.float32)[..., ::-1], None, other.header), image)
    (cut,) = Path(str(sites["mne-bids"]["path"])).glob("sub-0/ses-a/eeg/*.edf")
    cut.write_bytes(cut.read_bytes()[:-3000])
    out = tmp_path_factory.mktemp("every-format") / "corpus"
    values = {"sites": sites, "out_dir": out, "max_quarantined": 0.1, "split_fractions": (1, 0, 0)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MCSP_SUBJECT_KEY", KEY)
        build_corpus(CorpusConfig.parse(values, "test"))
    return Corpus(out)


def of(corpus: Corpus, site: str, subject: str, modality: str = "eeg") -> Recording:
    (found,) = [r for r in corpus.recordings if (r.site, r.subject, r.modality) == (
        site, subject_hash(KEY.encode(), site, subject), modality)]  # fmt: skip
    return found


@pytest.mark.filterwarnings("ignore")
def test_every_format_is_stored_and_only_what_is_damaged_is_missing(corpus: Corpus) -> None:
    found = {name: (c["found"], c["recordings"]) for name, c in corpus.index["totals"]["sites"].items()}
    assert found == {
        "eeg-files": (5, 5), "mne-bids": (3, 2), "simultaneous": (2, 2), "fmriprep": (1, 1), "afni": (1, 1),
        "cifti": (1, 1), "nifti": (1, 1),
    }  # fmt: skip
    assert corpus.index["reasons"] == {"truncated": 1}
    assert lint([str(corpus.path)]) == 0 and lint([str(corpus.path), "--privacy"]) == 0


def test_the_values_are_those_that_were_written(corpus: Corpus) -> None:
    expected = signal_uv(200.0)
    expected -= expected.mean(0)
    for site, subjects, first in (("eeg-files", range(5), 1.0), ("mne-bids", range(1, 3), 2.0)):
        for i in subjects:
            r = of(corpus, site, str(i))
            x_TC = corpus.read_window(r, 0, r.n_samples).x_TC
            assert r.channels == CHANNELS and r.unit == "uV" and r.sfreq == 200
            np.testing.assert_allclose(x_TC[800:-800], (first + i / 10) * expected.T[800:-800], atol=0.3)
    for site, seed in (("fmriprep", 0), ("afni", 1), ("cifti", 2)):
        r = of(corpus, site, "1", "fmri")
        x_TC = corpus.read_window(r, 0, r.n_samples).x_TC
        assert r.channels == NAMES and r.sfreq == 1 / T_R and r.unit == "percent"
        np.testing.assert_allclose(x_TC, expected_TP(bold_PT(seed)), atol=5e-3)


def test_the_dataset_of_mne_bids_brings_positions_and_spans_but_no_time(corpus: Corpus) -> None:
    r = of(corpus, "mne-bids", "2")
    assert r.valid_spans == [0, 1000, 1200, 4000]
    assert np.isfinite(r.positions_mm).all() and r.session == "a" and r.task == "rest"
    assert "2019" not in (corpus.path / "index.json").read_text()
    assert all(np.isnan(r.onset_seconds) for r in corpus.recordings if r.site != "simultaneous")


def test_the_marker_of_the_first_volume_pairs_a_simultaneous_run(corpus: Corpus) -> None:
    eeg, fmri = of(corpus, "simultaneous", "1"), of(corpus, "simultaneous", "1", "fmri")
    assert eeg.key == fmri.key
    assert (eeg.onset_seconds, fmri.onset_seconds) == (0.0, FIRST_VOLUME_SECONDS)
