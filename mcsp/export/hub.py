"""Exports to the Hugging Face Hub; ``mcsp.from_pretrained`` loads them from there. Needs the extra ``hub``.

A repository holds the files of an export and nothing else.
"""

from pathlib import Path

from mcsp.encode.pretrained import from_pretrained


def push_to_hub(folder: str | Path, repo_id: str, private: bool = True, revision: str | None = None) -> str:
    """Upload an export with the files it has; the address of the commit.

    The export is loaded before anything leaves the machine, and a repository is private unless asked otherwise: the
    terms of the recordings come first (see docs/data-terms.md).

    Raises:
        ValueError: as ``mcsp.from_pretrained``.
    """
    from huggingface_hub import HfApi

    from_pretrained(folder)
    api = HfApi()
    api.create_repo(repo_id, private=private, exist_ok=True)
    done = api.upload_folder(
        repo_id=repo_id, folder_path=str(folder), revision=revision, commit_message="MCSP export", delete_patterns="*"
    )
    return str(done.commit_url)
