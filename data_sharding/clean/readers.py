"""Read and clean one recording of either modality, or say why not. Importing this takes seconds (MNE, nilearn)."""

from mcsp.config import CorpusConfig
from mcsp.data_sharding.bids.find import RecordingRef, is_read
from mcsp.data_sharding.bids.outside import require_inside
from mcsp.data_sharding.bids.reasons import RecordingError, reading
from mcsp.data_sharding.bids.tables import require_content
from mcsp.data_sharding.clean.eeg import read_eeg
from mcsp.data_sharding.clean.fmri import read_fmri
from mcsp.data_sharding.clean.recording import CleanRecording, valid_seconds

_EXPECTED = {
    "eeg": "expected .edf, .bdf, .vhdr, .set or .fif: MNE-BIDS converts it",
    "fmri": "expected *_bold.nii.gz, *_timeseries.tsv, .csv, .npy or .1D with seg-, or *.ptseries.nii",
}


def read_recording(ref: RecordingRef, config: CorpusConfig) -> CleanRecording:
    """Read and clean one recording; raise :class:`RecordingError` with the reason, whatever is wrong with the file."""
    min_seconds = config.min_seconds.get(ref.modality, 0.0)
    with reading(ref.site.root, ref.path.name):
        # First, for nothing outside is opened, not even to look whether it is there; a link to nowhere is told as such.
        require_inside(ref.site, [ref.path] if ref.path.exists() else ())
        if not is_read(ref.path.name):
            raise RecordingError("unreadable", f"{ref.path.name}: a format that is not read, {_EXPECTED[ref.modality]}")
        require_content(ref.path)
        require_inside(ref.site, ref.inputs())
        if ref.modality == "eeg":
            clean = read_eeg(ref, config.eeg_of(ref.site.name), min_seconds)
        else:
            clean = read_fmri(ref, config.fmri_of(ref.site.name), min_seconds)
    if valid_seconds(clean) < min_seconds:
        detail = f"{valid_seconds(clean):.1f} s outside of bad spans, expected at least {min_seconds:g} s"
        raise RecordingError("too-short", detail)
    return clean
