"""Find the recordings that a user names, and their modality; write a table with one row for each."""

import csv
import glob
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mcsp.data_sharding.bids.find import find_recordings
from mcsp.data_sharding.bids.ref import EEG_EXTENSIONS, Site
from mcsp.data_sharding.parcels.series import EXTENSIONS
from mcsp.encode.extractor import FeatureExtractor
from mcsp.output import whole_file
from mcsp.schema import Modality

BOLD_EXTENSIONS = (".nii", ".nii.gz", *EXTENSIONS)
MISSING = "n/a"


@dataclass(frozen=True)
class Features:
    """Features of one file, or why there are none.

    Attributes:
        recording: the file as it was named.
        modality: of the file, ``""`` where its name does not say it.
        names: of the features.
        features: float64 ``(F,)``; None where the recording could not be used.
        warnings: what a user should know before trusting the features.
        error: why there are no features, else ``""``.
    """

    recording: str
    modality: str
    names: list[str]
    features: np.ndarray | None
    warnings: tuple[str, ...] = ()
    error: str = ""


def find_files(named: Iterable[str | Path]) -> list[Path]:
    """Files of recordings: those named, those of a pattern (``*.edf``), those of a BIDS dataset or below a folder.

    Each once, and none that a system hides, as macOS does ``._sub-01_eeg.edf``.

    Raises:
        ValueError: a folder or a pattern without a recording.
    """
    found: list[Path] = []
    for name in named:
        path = Path(name)
        if (path / "dataset_description.json").is_file():
            these = [ref.path for ref in find_recordings(Site(path.name, path, False, None))]
        elif path.is_dir():
            known = (*EEG_EXTENSIONS, ".nii", ".nii.gz")
            these = sorted(p for p in path.rglob("[!.]*") if p.name.lower().endswith(known))
        elif glob.has_magic(str(name)) and not path.exists():
            these = [Path(p) for p in sorted(glob.glob(str(name), recursive=True))]
        else:
            these = [path]
        if not these:
            raise ValueError(f"{name}: expected recordings, found none")
        found += these
    return list(dict.fromkeys(found))


def modality_of(recording: Any) -> Modality:
    """Modality of a file by its name, or of an object in memory; ``ValueError`` where neither says it."""
    if isinstance(recording, str | Path):
        name = Path(recording).name.lower()
        if name.endswith(EEG_EXTENSIONS):
            return "eeg"
        if name.endswith(tuple(e.lower() for e in BOLD_EXTENSIONS)):
            return "fmri"
        known = ", ".join((*EEG_EXTENSIONS, *BOLD_EXTENSIONS))
        raise ValueError(f"{recording}: expected a file of EEG or BOLD ({known})")
    if hasattr(recording, "ch_names"):
        return "eeg"
    if hasattr(recording, "dataobj"):
        return "fmri"
    raise ValueError(f"expected a file, an MNE Raw or an image, found {type(recording).__name__}; say the modality")


def reason_of(error: Exception, name: str) -> str:
    """Why a recording cannot be used, in one line without its name, beside which it stands."""
    text = " ".join(str(error).split())
    return text.removeprefix(f"{name}: ").removeprefix(f"{Path(name).name}: ")


def encode_files(files: Sequence[Path], model_dir: Path, options: dict[str, Any]) -> Iterator[Features]:
    """Features of each file, in order; one that cannot be used has its reason.

    Args:
        files: of EEG or BOLD.
        model_dir: an export.
        options: of :class:`mcsp.encode.extractor.FeatureExtractor`.
    """
    extractors: dict[Modality, FeatureExtractor] = {}
    for file in files:
        modality = ""
        try:
            modality = modality_of(file)
            if modality not in extractors:
                extractors[modality] = FeatureExtractor(model_dir, modality, **options).fit(None)
            names = extractors[modality].feature_names_
            encoded = extractors[modality].encode(file)
            yield Features(str(file), modality, names, encoded.features, encoded.report.warnings)
        except (ValueError, OSError, MemoryError) as error:  # a recording costs itself alone
            yield Features(str(file), modality, [], None, error=reason_of(error, str(file)))


def write_features(found: Iterable[Features], out: Path) -> None:
    """Write ``.tsv`` (a row per file, a column per feature) or ``.npz`` (arrays of each modality, without pickles).

    Raises:
        OSError: a full disk, or a folder that nobody may write to, which is noticed before the first row is made;
            names the file, of which nothing is left half-written.
    """
    with whole_file(out) as aside:
        rows = list(found)
        if out.suffix == ".npz":
            _write_arrays(aside, rows)
            return
        names = list(dict.fromkeys(name for row in rows for name in row.names))
        _write_rows(aside, ["recording", "modality", "warnings", "error", *names], map(_cells, rows))


def _write_arrays(out: Path, rows: Sequence[Features]) -> None:
    arrays: dict[str, Any] = {
        "recordings": np.array([row.recording for row in rows]),
        "modalities": np.array([row.modality for row in rows]),
        "warnings": np.array(["; ".join(row.warnings) for row in rows]),
        "errors": np.array([row.error for row in rows]),
    }
    for modality in sorted({row.modality for row in rows if row.features is not None}):
        these = [i for i, row in enumerate(rows) if row.modality == modality and row.features is not None]
        arrays[f"{modality}_features"] = np.stack([x for i in these if (x := rows[i].features) is not None])
        arrays[f"{modality}_rows"] = np.array(these)
        arrays[f"{modality}_names"] = np.array(rows[these[0]].names)
    with out.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def _cells(row: Features) -> dict[str, Any]:
    values = {} if row.features is None else dict(zip(row.names, row.features.tolist(), strict=True))
    about = {"recording": row.recording, "modality": row.modality, "warnings": "; ".join(row.warnings)}
    return {**about, "error": row.error, **values}


def write_table(out: Path, columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> None:
    """Write a table with tabs; what a row lacks, or holds as ``""`` or None, is ``n/a``.

    Raises:
        OSError: as :func:`write_features`.
    """
    with whole_file(out) as aside:
        _write_rows(aside, columns, rows)


def _write_rows(out: Path, columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> None:
    with out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(columns)
        for row in rows:
            cells = (row.get(name) for name in columns)
            writer.writerow([MISSING if cell is None or cell == "" else cell for cell in cells])
