"""``dataset_description.json`` of a corpus: what made it, and of which datasets, in the terms of BIDS 1.10.

GeneratedBy and SourceDatasets are those of BIDS derivatives
(https://bids-specification.readthedocs.io/en/stable/modality-agnostic-files.html). Nobody's name is copied: of a source
only its name, version, licence, DOI and links go along.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mcsp.data_sharding.bids.tables import read_json
from mcsp.outside import sha256_json
from mcsp.version import __version__
from mcsp.wording import markdown

DESCRIPTION_NAME = "dataset_description.json"
_BIDS_VERSION = "1.10.0"
# Key of the site's file -> key in SourceDatasets.
_COPIED = {"Name": "Name", "License": "License", "DatasetDOI": "DOI", "DatasetVersion": "Version"}


def source_dataset(site: str, root: Path) -> dict[str, Any]:
    """What a site's ``dataset_description.json`` says of its origin; only the site's name where it says nothing."""
    try:
        given = read_json(root / DESCRIPTION_NAME)
    except ValueError:  # told elsewhere; a description is no reason to fail
        given = {}
    source: dict[str, Any] = {"Site": site}
    source |= {own: given[name] for name, own in _COPIED.items() if isinstance(given.get(name), str) and given[name]}
    links = given.get("ReferencesAndLinks")
    if isinstance(links, list):
        source["ReferencesAndLinks"] = [text for text in links if isinstance(text, str)]
    if given.get("Simulated") is True:
        source["Simulated"] = True
    return source


def read_sources(path: Any) -> dict[str, dict[str, Any]]:
    """What a corpus says of the origin of each site; empty where it says nothing."""
    file = path / DESCRIPTION_NAME
    found = read_json(file).get("SourceDatasets") if file.is_file() else []
    known = [source for source in found if isinstance(source, dict)] if isinstance(found, list) else []
    return {source["Site"]: source for source in known if isinstance(source.get("Site"), str)}


def terms_of(source: Mapping[str, Any]) -> str:
    """Licence and DOI of one of these, for a table of a Markdown file."""
    stated = [source.get("License") or "not stated", source.get("DOI")]
    return markdown(", ".join(text for text in stated if isinstance(text, str)))


def dataset_description(
    config: Mapping[str, Any], versions: Mapping[str, str], sources: Mapping[str, Path]
) -> dict[str, Any]:
    """The content of the file: a function of the configuration, the versions and the sites' own descriptions.

    Args:
        config: the resolved configuration, without what depends on the machine.
        versions: of the software that made the corpus.
        sources: folder of each site.
    """
    software = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()) if name != "mcsp")
    return {
        "Name": "MCSP corpus",
        "BIDSVersion": _BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [
            {
                "Name": "mcsp-pretraining",
                "Version": versions.get("mcsp", __version__),
                "Description": f"launchers/build_corpus.py, with {software}",
                "ConfigSHA256": sha256_json(config),
            }
        ],
        "SourceDatasets": [source_dataset(site, root) for site, root in sorted(sources.items())],
    }
