"""Load exported weights, and encode recordings with them: ``mcsp.from_pretrained(folder).encode_raw(file)``.

Importing this and loading a model needs torch, numpy, einops, safetensors, pyyaml and pydantic alone; MNE, nibabel and
nilearn are imported when a recording is encoded. What the client of the Hugging Face Hub (extra ``hub``) brings is
checked against its SHA256SUMS as any export is, and nothing is unpickled.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mcsp.model.weights import (
    CONFIG_FILE,
    PREPROCESSING_FILE,
    SUBJECTS_FILE,
    SUMS_FILE,
    WEIGHTS_FILE,
    ExportedMCSP,
    load_export,
)

if TYPE_CHECKING:
    from mcsp.encode.eeg import EncodedTrials
    from mcsp.encode.recording import EncodedRecording

_LOADED = [CONFIG_FILE, WEIGHTS_FILE, PREPROCESSING_FILE, SUMS_FILE, SUBJECTS_FILE, "README.md"]
_REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*")  # owner/name


class PretrainedMCSP(ExportedMCSP):
    """An exported model that cleans and encodes recordings."""

    def encode_raw(
        self, raw: Any, line_hz: float | None = None, measured_positions: bool = False, **options: Any
    ) -> "EncodedRecording":
        """Features of one EEG recording, a file or an MNE Raw, with a report of what was done to it.

        See :func:`mcsp.encode.eeg.encode_raw` for the arguments and errors, and
        :class:`mcsp.encode.recording.Options` for ``options``. Needs the ``lab`` extra.
        """
        from mcsp.encode.recording import Options, require_packages

        require_packages("mne", "scipy", "nibabel")
        from mcsp.encode.eeg import encode_raw

        return encode_raw(self, raw, line_hz, measured_positions, Options(**options))

    def encode_epochs(
        self,
        trials: Any,
        line_hz: float | None = None,
        measured_positions: bool = False,
        on_error: Literal["raise", "nan"] = "raise",
        **options: Any,
    ) -> "EncodedTrials":
        """Features of the trials of an ``mne.Epochs``, one row each; see :func:`mcsp.encode.eeg.encode_epochs`."""
        from mcsp.encode.recording import Options, require_packages

        require_packages("mne", "scipy", "nibabel")
        from mcsp.encode.eeg import encode_epochs

        return encode_epochs(self, trials, line_hz, measured_positions, Options(**options), on_error)

    def encode_bold(
        self,
        bold: Any,
        t_r: float | None = None,
        parcellation: Any = None,
        parcel_table: str | Path | None = None,
        percent: bool = False,
        require_known_parcellation: bool = False,
        space: str | None = None,
        **options: Any,
    ) -> "EncodedRecording":
        """Features of one run of BOLD, a file, an image or an array, with a report of what was done to it.

        See :func:`mcsp.encode.bold.encode_bold` for the arguments and errors, and
        :class:`mcsp.encode.recording.Options` for ``options``. Needs the ``lab`` extra.
        """
        from mcsp.encode.recording import Options, require_packages

        require_packages("nibabel", "pandas", "scipy")
        from mcsp.encode.bold import encode_bold

        checked = require_known_parcellation
        return encode_bold(self, bold, t_r, parcellation, parcel_table, percent, checked, Options(**options), space)


def from_pretrained(
    path: str | Path, revision: str | None = None, cache_dir: str | Path | None = None
) -> PretrainedMCSP:
    """Load an export in evaluation mode, in float32 on the CPU, with ``.preprocessing`` filled.

    Args:
        path: a folder that ``launchers/export.py`` or :func:`write_pretrained` wrote; else a repository of the Hugging
            Face Hub, "owner/name", which is downloaded once (extra ``hub``).
        revision: branch, tag or commit of a repository; name a commit where a result must not change.
        cache_dir: where downloads are kept; None: the Hub's own cache.

    Raises:
        ValueError: no such folder or repository, not an export, another format version, a missing, damaged or changed
            file, or weights whose names or shapes are not those of the configuration.
    """
    if is_repository(path):
        path = _downloaded(str(path), revision, cache_dir)
    elif revision is not None:
        raise ValueError(f"{path}: a folder has no revision, found {revision!r}")
    return load_export(path, PretrainedMCSP)


def is_repository(path: str | Path) -> bool:
    """Whether it is no folder, and has the form ``"owner/name"``."""
    return isinstance(path, str) and _REPOSITORY.fullmatch(path) is not None and not Path(path).exists()


def _downloaded(name: str, revision: str | None, cache_dir: str | Path | None) -> Path:
    """The folder to which the Hub's client has downloaded the export of a repository."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ModuleNotFoundError:
        how = "to look for it on the Hub: pip install 'mcsp-pretraining[hub]'"
        raise ValueError(f"{name}: no such folder; {how}") from None
    try:
        return Path(snapshot_download(name, revision=revision, cache_dir=cache_dir, allow_patterns=_LOADED))
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:  # no such repository or revision, no access, no network
        why = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ValueError(f"{name}: no such folder, and not to be had from the Hub ({why})") from None
