"""Why a recording is not stored: the list of reasons, and the error that carries one of them."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple


class Reason(NamedTuple):
    """One way in which a recording cannot be stored."""

    meaning: str
    example: str  # a message
    remedy: str  # what the owner of the files can do


# docs/reasons.md is made of this table: python -m mcsp.data_sharding.bids.reasons > docs/reasons.md
REASONS = {
    # files
    "unreadable": Reason(
        "the reader of this format fails",
        "sub-1_task-rest_eeg.set: MatReadError: Mat file appears to be empty",
        "open the file with MNE or nibabel; copy it again from its source",
    ),
    "missing-file": Reason(
        "the recording, or a file that its header names, is absent",
        "sub-3_task-rest_eeg.edf: a link to ../.git/annex/objects/7K/4J/..., which is absent, expected the file itself",
        "fetch the content (`datalad get`, `git lfs pull`); copy the files that the header names (`.eeg`, "
        "`.vmrk`, `.fdt`)",
    ),
    "other-data": Reason(
        "the header of a recording names the samples of another one",
        "sub-1_task-rest_run-2_eeg.vhdr: the header names sub-1_task-rest_run-1_eeg.eeg, and "
        "sub-1_task-rest_run-2_eeg.eeg lies beside it, expected its own samples",
        "find out which file holds the recording, and write its name into the header (`DataFile`, `EEG.datfile`)",
    ),
    "outside-dataset": Reason(
        "a link or a header leads out of the dataset",
        "sub-2_task-rest_eeg.edf: lies outside of its dataset, through a link or a name in a header; expected it below "
        "the dataset's folder, or its folder under trusted_link_targets",
        "copy the file into the dataset, or name the link's target under `trusted_link_targets`",
    ),
    "unsafe-file": Reason(
        "an HDF5 file takes its values from other files",
        "sub-1_task-rest_eeg.set: 'data' is stored in another file (/proc/self/environ), expected values in the file "
        "itself",
        "export the recording again with its values inside; find out who made the file",
    ),
    "truncated": Reason(
        "the file is shorter than its header says",
        "sub-1_task-rest_eeg.fdt: holds 570000 bytes, its header says 1140000 (19 channels of 15000 samples)",
        "copy the file again; compare its size with the source",
    ),
    "wrong-length": Reason(
        "the file is longer than its header says, or its duration differs from the sidecar",
        "sub-1_task-rest_eeg.edf: lasts 40.0 s, expected the sidecar's 20 s",
        "find out which is right; export the recording again",
    ),
    "not-continuous": Reason(
        "the file holds trials, or pieces with gaps",
        "sub-1_task-rest_eeg.edf: EDF+D with 2 gaps, the first of 3.5 s after 12 s, expected a continuous file",
        "export the recording without gaps, or as one file per piece",
    ),
    "invalid-json": Reason(
        "a sidecar is not a JSON object",
        "task-rest_eeg.json: not valid JSON (Expecting value: line 1 column 1 (char 0))",
        "repair the sidecar; the BIDS validator names the place",
    ),
    "bad-encoding": Reason(
        "a sidecar, a table or the file's name is not UTF-8",
        "participants.tsv: line 2: byte 3 is 0xe9, expected UTF-8",
        "save the sidecar or table as UTF-8; rename the file",
    ),
    "bad-name": Reason(
        "a label with other than letters and digits, or a channel name of more than 64 characters",
        "sub-1a_task-rest.2_eeg.edf: task 'rest.2', expected letters and digits",
        "rename the file as BIDS asks, or the channel or parcel",
    ),
    "bad-table": Reason(
        "a table lacks columns, or has text where numbers are expected",
        "sub-1_electrodes.tsv: row 1, column x: '-29,4', expected a number with a decimal point",
        "look for gaps, decimal commas, a missing header, a name twice or a wrong separator",
    ),
    "too-short": Reason(
        "less time than `min_seconds`",
        "sub-1_task-rest_eeg.edf: 5.0 s, expected at least 10 s",
        "nothing, or lower `min_seconds`",
    ),
    # EEG
    "sfreq-mismatch": Reason(
        "the rates of sidecar and header differ by more than 1 %, or the rate is that of no EEG",
        "sub-1_task-rest_eeg.edf: sidecar says 500 Hz, the file's header 250 Hz",
        "ask the site; correct `SamplingFrequency`",
    ),
    "several-rates": Reason(
        "EEG channels of one file have several rates",
        "sub-1_task-rest_eeg.edf: EEG at 200 Hz (Fp1, Fp2) and 400 Hz (O1, O2), expected one rate",
        "export the EEG at one rate, or give the other channels another `type` in `channels.tsv`",
    ),
    "channels-mismatch": Reason(
        "`channels.tsv` names channels that the file does not have",
        "sub-1_task-rest_channels.tsv: 2 of 3 rows, such as 'A', name no channel of the file, expected its 8 channels",
        "write `channels.tsv` again from the file",
    ),
    "no-channels": Reason(
        "the file has no EEG channel or no parcel",
        "sub-1_task-rest_eeg.edf: none of 7 channels is EEG",
        "set `type` in `channels.tsv`; for BOLD look at the time series",
    ),
    "unknown-montage": Reason(
        "too few EEG channels have a position",
        "sub-1_task-rest_eeg.edf: 1 of 65 EEG channels have a position (Cz), expected at least 4: 10-05 "
        "names or electrodes.tsv",
        "add `electrodes.tsv` with `coordsystem.json`, or use 10-05 names; export differences (`Fp1-F7`) "
        "against one reference",
    ),
    "electrodes-unit": Reason(
        "electrode positions do not fit a head in the given unit",
        "sub-1_electrodes.tsv: electrodes lie 95000 mm from the centre of the head, expected 40 to "
        "200 mm: EEGCoordinateUnits is 'm', the values look like mm",
        "correct `EEGCoordinateUnits` in `coordsystem.json`",
    ),
    "wrong-unit": Reason(
        "the amplitude is impossible in the given unit",
        "sub-1_task-rest_eeg.edf: median channel amplitude 2e+04 uV, expected 0.1 to 5000 uV "
        "(millivolts taken for volts, or microvolts for millivolts?)",
        "correct the unit in the header or in `channels.tsv`; do not scale the data in place",
    ),
    "clipped": Reason(
        "too many channels are at the limits of their range",
        "sub-1_task-rest_eeg.edf: 5 of 8 channels are bad (5 clipped), too many to go on",
        "ask the site for the amplifier's range; such data cannot be repaired",
    ),
    "bad-channels": Reason(
        "too many channels are marked bad or differ from the others",
        "sub-1_task-rest_eeg.edf: 12 of 19 channels are bad (12 bad-channels), too many to go on",
        "look at the traces: was the reference or ground lost?",
    ),
    "artefacts": Reason(
        "less than `min_seconds` without artefacts",
        "sub-1_task-rest_eeg.edf: 7.0 s outside of artefacts, expected at least 10 s",
        "look at the traces; nothing, if they are bad",
    ),
    # EEG and fMRI
    "non-finite": Reason(
        "too many channels have NaN or infinity",
        "sub-1_task-rest_eeg.fif: 5 of 8 channels are bad (5 non-finite), too many to go on",
        "find what wrote NaN: a conversion, or a missing confound",
    ),
    "flat": Reason(
        "too many channels are constant",
        "sub-1_task-rest_eeg.edf: 7 of 7 channels are bad (7 flat), too many to go on",
        "look at the traces; a wrong scale in a header makes zeros too",
    ),
    # fMRI
    "missing-t_r": Reason(
        "no sidecar of the run has `RepetitionTime`",
        "sub-1_task-rest_bold.nii.gz: no RepetitionTime in the JSON sidecar or in that of an image of the run, "
        "expected seconds",
        "add `RepetitionTime` in seconds to the sidecar",
    ),
    "t_r-mismatch": Reason(
        "`RepetitionTime` is implausible, or differs from the image header",
        "sub-1_task-rest_bold.nii.gz: RepetitionTime of the sidecar gives t_r 2000 (milliseconds?), "
        "expected 0.05 to 20 s",
        "correct it in header or sidecar: is one in milliseconds?",
    ),
    "not-4d": Reason(
        "the image is not a series of volumes",
        "sub-1_task-rest_bold.nii.gz: expected a 4-D image, found shape (64, 64, 30)",
        "give a reference image another suffix than `bold`",
    ),
    "no-volumes": Reason(
        "the time series is empty",
        "sub-1_task-rest_seg-A_timeseries.tsv: 0 volumes, expected a time series",
        "run the preprocessing of this run again",
    ),
    "singular-affine": Reason(
        "the image's affine gives no positions",
        "sub-1_task-rest_bold.nii.gz: its affine maps no voxel to a place",
        "take the image from before the step that lost its affine",
    ),
    "no-label-image": Reason(
        "a 4-D image without a parcellation",
        "sub-1_task-rest_bold.nii.gz: no *_dseg.nii.gz of its space at the dataset's root and no label_image or "
        "atlas in the settings",
        "set `label_image` of the site, or put a `*_dseg.nii.gz` at the dataset's root",
    ),
    "bad-label-image": Reason(
        "the parcellation image has no integer labels",
        "seg-A_dseg.nii.gz: expected integer labels in three dimensions",
        "resample parcellations with nearest neighbours",
    ),
    "no-orientation": Reason(
        "the image does not say where left and right are",
        "sub-1_task-rest_bold.nii.gz: neither sform nor qform, expected one: left and right may be exchanged",
        "write the image again with the scanner's sform and qform; do not guess",
    ),
    "label-space-mismatch": Reason(
        "image and parcellation are in different or unknown spaces",
        "sub-1_task-rest_space-T1w_desc-preproc_bold.nii.gz: space-T1w, expected an image in an MNI space; where "
        "it is, say which (image_space, or space=)",
        "take both in the same MNI space; if you know the space, set `image_space` or `label_space`",
    ),
    "unknown-parcellation": Reason(
        "parcels have no positions",
        "sub-1_task-rest_seg-A_timeseries.tsv: 0 of 12 parcels have a position, expected x, y, z [mm] in a *_dseg.tsv, "
        "a label image, or an atlas in the settings",
        "put a `*_dseg.tsv` with x, y, z or a `*_dseg.nii.gz` at the dataset's root, or set `atlas` or `label_image`",
    ),
    "parcels-mismatch": Reason(
        "time series and parcellation differ in their number of parcels",
        "sub-1_task-rest_timeseries.1D: 200 columns, expected the table's 190 parcels",
        "take the table of labels that the time series were made with",
    ),
    "parcels-missing": Reason(
        "too many parcels have no signal",
        "sub-1_task-rest_bold.nii.gz: 120 of 200 parcels have no signal, too many to go on",
        "look at the field of view; a partial brain does not fit a whole parcellation",
    ),
    "no-baseline": Reason(
        "the mean of BOLD is neither a baseline nor zero",
        "sub-1_task-rest_seg-A_timeseries.tsv: median mean/deviation of the parcels is 2, expected raw BOLD with at "
        "least 5, or a series without its mean (0)",
        "give the series with its mean, or a denoised one without any",
    ),
    "missing-confounds": Reason(
        "the settings ask for confounds, and the image has none",
        "sub-1_task-rest_bold.nii.gz: no *_desc-confounds_timeseries.tsv beside it",
        "copy fMRIPrep's confounds beside the images, or do not ask for them",
    ),
    "confounds-mismatch": Reason(
        "confounds and time series differ in their number of volumes",
        "sub-1_task-rest_desc-confounds_timeseries.tsv: 150 rows, expected the series' 146 volumes",
        "remove dummy volumes from both",
    ),
    "motion": Reason(
        "less than `min_seconds` without motion",
        "sub-1_task-rest_bold.nii.gz: 20.0 s outside of motion, expected at least 30 s",
        "nothing, or set a less strict limit for all sites",
    ),
    # what only the builder sees
    "timeout": Reason(
        "reading took too long, or the site used up its time",
        "not read within 900 s",
        "read the file alone: is the disk slow, or the file damaged?",
    ),
    "native-crash": Reason(
        "the process that read the file died",
        "the reading process was killed by SIGSEGV",
        "open the file with MNE or nibabel; report it to the library",
    ),
    "out-of-memory": Reason(
        "reading needed more memory than the limit",
        "reading needs more than read_memory_gb = 16",
        "set a larger limit, or fewer workers per node",
    ),
    "duplicate": Reason(
        "the same content as another recording",
        "the same content as clinic/sub-1/eeg/sub-1_task-rest_eeg.edf",
        "remove one of the two; ask whether one person has two ids",
    ),
    "suspected-personal-data": Reason(
        "text that would be published may identify a person",
        "channel: date like '9999-99-99'",
        "change the text at the site, or leave the column out",
    ),
}


# Reasons whose lines hold measurements of ours, which are published; those of all others may repeat what a file says.
_MEASURED = frozenset({
    "truncated", "wrong-length", "too-short", "sfreq-mismatch", "wrong-unit", "clipped", "bad-channels", "artefacts",
    "non-finite", "flat", "not-4d", "no-volumes", "parcels-mismatch", "parcels-missing", "confounds-mismatch", "motion",
    "timeout", "out-of-memory",
})  # fmt: skip
_NUMBER = r"\d{1,12}(?:\.\d{1,6})?(?:e[+-]\d\d)?"
_MEASUREMENT = re.compile(
    rf"(?<![\w.,:'-]){_NUMBER}(?: (?:of|to) {_NUMBER})? "
    r"(?:s|Hz|uV|%|bytes|records|samples|volumes|rows|columns|channels|parcels)(?![\w.-])"
)
_DETAIL_LENGTH = 200
_BEGINS_WITH_FILE = re.compile(r"[^\s:]+\.\w*[A-Za-z]\w*[: ]")  # and not "2.0 s"


class RecordingError(ValueError):
    """A recording that must not be stored; ``reason`` is a key of :data:`REASONS`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail.encode("utf-8", "backslashreplace").decode())  # of a name that is no UTF-8
        assert reason in REASONS, reason
        self.reason = reason

    @property
    def remedy(self) -> str:
        """What to do about it."""
        return REASONS[self.reason].remedy


@contextmanager
def naming(file: str) -> Iterator[None]:
    """Put ``file`` in front of an error of the body that does not begin with the name of a file."""
    try:
        yield
    except RecordingError as error:
        if _BEGINS_WITH_FILE.match(str(error)) or str(error).startswith(file):
            raise
        raise RecordingError(error.reason, f"{file}: {error}") from None


@contextmanager
def reading(root: Path, file: str = "") -> Iterator[None]:
    """Turn whatever the readers of a format raise on a damaged file into a :class:`RecordingError` that names ``file``.

    Each of them has errors of its own, some are plain ``Exception``; a lack of memory is no fault of the file. The path
    of ``root`` is left out of the text: it would make an index depend on the machine.
    """
    try:
        yield
    except (RecordingError, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001  whatever a damaged file makes of a library
        detail = " ".join(str(error).split()).replace(f"{root}{os.sep}", "")
        text = f"{type(error).__name__}: {detail}"[:_DETAIL_LENGTH]
        raise RecordingError("unreadable", f"{file}: {text}" if file else text) from None


def measurements(reason: str, detail: str) -> str:
    """The part of a message that may be published: numbers with units, without names, cells or other text.

    Example: ``measurements("too-short", "sub-1_eeg.edf: 5.0 s, expected at least 10 s") -> "5.0 s, 10 s"``.
    """
    if reason not in _MEASURED:
        return ""
    text = _BEGINS_WITH_FILE.sub(" ", detail, count=1)
    text = re.sub(r"\(.*\)|'.*'", " ", text)  # names of channels, and what a file says, stand in these
    return ", ".join(_MEASUREMENT.findall(text))


def reasons_page() -> str:
    """The text of ``docs/reasons.md``."""
    lines = [
        "# Why a recording is not stored, and what to do",
        "",
        "Each recording that was found and not stored has one of these reasons, and a message like the example. A",
        "build lists original names in `.build/rejected.tsv`. Published lists have the reason, a hash of the subject",
        "and measurements. `encode_raw`, `encode_bold` and `FeatureExtractor` raise them as `RecordingError`.",
        "",
        "| reason | example of a message | what to do |",
        "|---|---|---|",
    ]
    messages = {name: _BEGINS_WITH_FILE.sub("", r.example, count=1).strip() for name, r in REASONS.items()}
    lines += [f"| {name} | `{messages[name]}` | {r.remedy} |" for name, r in REASONS.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(reasons_page(), end="")
