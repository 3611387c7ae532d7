"""An export from the Hugging Face Hub: the folder to which its client has downloaded it; needs the extra ``hub``.

What comes down is checked against its SHA256SUMS when it is loaded, and nothing is unpickled.
"""

import re
from pathlib import Path

from mcsp.model.weights import CONFIG_FILE, PREPROCESSING_FILE, SUBJECTS_FILE, SUMS_FILE, WEIGHTS_FILE

_LOADED = [CONFIG_FILE, WEIGHTS_FILE, PREPROCESSING_FILE, SUMS_FILE, SUBJECTS_FILE, "README.md"]
_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def is_repository(path: str | Path) -> bool:
    """Whether it is no folder, and has the form ``"owner/name"``."""
    return isinstance(path, str) and _NAME.fullmatch(path) is not None and not Path(path).exists()


def download(name: str, revision: str | None = None, cache_dir: str | Path | None = None) -> Path:
    """The folder that holds a repository's export.

    Args:
        name: "owner/name".
        revision: branch, tag or commit; None: the main branch.
        cache_dir: where downloads are kept; None: the Hub's own cache.

    Raises:
        ValueError: the extra ``hub`` is not installed, or no such repository can be reached; one line.
    """
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ModuleNotFoundError:
        raise ValueError(
            f"{name}: no such folder; to look for it on the Hub: pip install 'mcsp-pretraining[hub]'"
        ) from None
    try:
        return Path(snapshot_download(name, revision=revision, cache_dir=cache_dir, allow_patterns=_LOADED))
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:  # no such repository or revision, no access, no network
        raise ValueError(f"{name}: no such folder, and not to be had from the Hub ({_first_line(error)})") from None


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
