"""Exports on the Hugging Face Hub, with its usual names; needs the extra ``hub``.

A repository holds the files of an export and nothing else. What comes down is checked against its SHA256SUMS, and
nothing is unpickled.
"""

from pathlib import Path

from mcsp.encode.pretrained import PretrainedMCSP
from mcsp.encode.pretrained import from_pretrained as from_folder
from mcsp.model.weights import CONFIG_FILE, PREPROCESSING_FILE, SUMS_FILE, WEIGHTS_FILE

_LOADED = [CONFIG_FILE, WEIGHTS_FILE, PREPROCESSING_FILE, SUMS_FILE, "pretraining_subjects.txt", "README.md"]


def from_pretrained(
    path_or_repo_id: str | Path, revision: str | None = None, cache_dir: Path | None = None
) -> PretrainedMCSP:
    """Load an export from a folder, else from a repository of the Hub, as :func:`mcsp.from_pretrained` does.

    Args:
        path_or_repo_id: a folder that exists, or "owner/name".
        revision: branch, tag or commit of the repository; name a commit where a result must not change.
        cache_dir: where downloads are kept; None: the Hub's own cache.

    Raises:
        ValueError: neither a folder nor a name of a repository, a repository that cannot be reached, and as
            ``mcsp.from_pretrained``.
        ModuleNotFoundError: the extra ``hub`` is not installed and there is no such folder.
    """
    if Path(path_or_repo_id).is_dir():
        return from_folder(path_or_repo_id)
    owner, slash, name = str(path_or_repo_id).partition("/")
    if not (owner and slash and name) or "/" in name:
        raise ValueError(f"{path_or_repo_id}: expected a folder or a repository owner/name, found neither")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    name = str(path_or_repo_id)
    try:
        folder = snapshot_download(name, revision=revision, cache_dir=cache_dir, allow_patterns=_LOADED)
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:  # no such repository or revision, no access, no network
        raise ValueError(f"{name}: no such folder, and not to be had from the Hub ({_first_line(error)})") from None
    return from_folder(folder)


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def push_to_hub(folder: str | Path, repo_id: str, private: bool = True, revision: str | None = None) -> str:
    """Upload an export with the files it has; the address of the commit.

    The export is loaded before anything leaves the machine, and a repository is private unless asked otherwise: the
    terms of the recordings come first (see docs/data-terms.md).

    Raises:
        ValueError: as ``mcsp.from_pretrained``.
    """
    from huggingface_hub import HfApi

    from_folder(folder)
    api = HfApi()
    api.create_repo(repo_id, private=private, exist_ok=True)
    done = api.upload_folder(
        repo_id=repo_id, folder_path=str(folder), revision=revision, commit_message="MCSP export", delete_patterns="*"
    )
    return str(done.commit_url)
