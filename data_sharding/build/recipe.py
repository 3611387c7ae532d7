"""The recipe of a corpus: everything beside the recordings that decides the bytes of its shards."""

import hashlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mcsp.config import CorpusConfig
from mcsp.config.corpus import Selection
from mcsp.data_sharding.build.layout import sha256_json
from mcsp.provenance import ROOT
from mcsp.version import __version__

_PACKAGES = ("mne", "nibabel", "nilearn", "numpy", "pandas", "pyarrow", "scipy")
# Files that decide stored bytes: whole rooms, and these of the others.
_ROOMS = ("bids", "parcels", "clean")
_FILES = (
    "build/layout.py", "build/plan.py", "build/privacy.py", "build/pseudonyms.py", "build/samples.py",
    "build/shards.py",
)  # fmt: skip
# Settings that name subjects, sessions and files as the site calls them.
_OF_PEOPLE = ("subjects", "sessions", "exclude")
_OF_MACHINE = (
    "bids_root", "out_dir", "private_dir", "workers", "subject_key_file", "trusted_link_targets", "allow_open_cluster",
)  # fmt: skip


def public_config(config: CorpusConfig) -> dict[str, Any]:
    """The resolved configuration without folders and the number of workers, and without labels of people."""
    values = {name: value for name, value in config.dump().items() if name not in _OF_MACHINE}
    for section in (values["fmri"], *values["sites"].values()):
        section["label_image"] = Path(section["label_image"]).name if section["label_image"] else None
        section.pop("path", None)
        section.pop("storage_options", None)  # may hold a secret
    for section in (values, *values["sites"].values()):
        for name in _OF_PEOPLE:
            section.pop(name, None)
    return values


def software_versions() -> dict[str, str]:
    """Versions of the packages that decide a corpus's bytes."""
    return {"mcsp": __version__, **{package: version(package) for package in _PACKAGES}}


def recipe_config(config: CorpusConfig) -> dict[str, Any]:
    """What all shards share: not the list of sites, and not what decides only whether a recording survives."""
    limits = {"on_error", "max_quarantined", "read_timeout_seconds", "site_timeout_seconds", "read_memory_gb"}
    free = {"sites", *limits, *Selection.model_fields}
    return {name: value for name, value in public_config(config).items() if name not in free}


def code_digest() -> str:
    """SHA-256 of the files that decide a corpus's bytes, so that a changed recipe never continues an older build."""
    folder = ROOT / "mcsp" / "data_sharding"
    files = [ROOT / "mcsp" / "schema.py", *(folder / file for file in _FILES)]
    files += [file for room in _ROOMS for file in sorted((folder / room).glob("*.py"))]
    return sha256_json([hashlib.sha256(file.read_bytes()).hexdigest() for file in files])
