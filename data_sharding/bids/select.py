"""Select files of a dataset: the configuration's selection, ``.bidsignore``, and the folder of a pipeline."""

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from mcsp.config.corpus import Selection
from mcsp.data_sharding.bids.reasons import RecordingError
from mcsp.data_sharding.bids.tables import read_text

IGNORE_NAME = ".bidsignore"
DERIVATIVES = "derivatives"
# Key of the selection -> entity, and the prefix that a label may have.
_FILTERS = {
    "subjects": ("subject", "sub-"),
    "sessions": ("session", "ses-"),
    "tasks": ("task", "task-"),
    "runs": ("run", "run-"),
}


def ignored_by(root: Path, notes: list[str]) -> Callable[[str], bool]:
    """Whether a file, relative to the dataset, is named in its ``.bidsignore`` (patterns as those of Git)."""
    if not (file := root / IGNORE_NAME).is_file():
        return lambda path: False
    import pathspec  # those who read single recordings need none

    try:
        patterns = pathspec.GitIgnoreSpec.from_lines(read_text(file).splitlines())
    except (RecordingError, ValueError) as error:
        notes.append(f"{root}: {IGNORE_NAME} is not used: {' '.join(str(error).split())}")
        return lambda path: False
    return patterns.match_file


def pipelines_of(path: str) -> list[str]:
    """Names of the folders below ``derivatives`` in which a file of a dataset lies; none if it is raw."""
    folders = PurePosixPath(path).parts[:-1]
    return [folders[i + 1] for i, folder in enumerate(folders[:-1]) if folder == DERIVATIVES]


def is_wanted(path: str, entities: Mapping[str, str], selection: Selection) -> bool:
    """Whether the configuration takes a recording, by its labels, its path in the dataset and its pipeline."""
    for name, (entity, prefix) in _FILTERS.items():
        labels = getattr(selection, name)
        if labels is not None and not any(is_label(label, prefix, entities.get(entity)) for label in labels):
            return False
    pipelines = pipelines_of(path)
    if selection.derivatives is not None and pipelines and selection.derivatives not in pipelines:
        return False
    return not any(_excludes(pattern, path, entities["subject"]) for pattern in selection.exclude or ())


def is_label(label: str | int, prefix: str, found: str | None) -> bool:
    """Whether a label of the configuration is that of a recording; numbers count as numbers: 1 is 01."""
    if found is None:
        return False
    text = str(label).removeprefix(prefix)
    is_number = isinstance(label, int) or prefix == "run-"
    return text == found or (is_number and text.isdecimal() and found.isdecimal() and int(text) == int(found))


def _excludes(pattern: str | int, path: str, subject: str) -> bool:
    text = str(pattern)
    if "/" in text or "*" in text or "." in text:
        return fnmatchcase(path, text) or fnmatchcase(path, f"{text.rstrip('/')}/*")
    return is_label(pattern, "sub-", subject)
