"""Encode one run of BOLD, an image, a table or an array, cleaned exactly as the recordings of the pretraining corpus.

Shape letters: T volumes, P parcels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mcsp.config import FmriConfig
from mcsp.data_sharding.bids.reasons import RecordingError, naming, reading
from mcsp.data_sharding.bids.ref import read_sidecar, ref_of_file
from mcsp.data_sharding.clean.fmri import (
    Confounds,
    clean_bold,
    in_percent,
    plausible_t_r,
    repetition_time,
    require_length,
    with_confounds,
)
from mcsp.data_sharding.clean.fmri_files import average_parcels, is_image, read_time_series
from mcsp.data_sharding.clean.recording import CleanRecording
from mcsp.data_sharding.parcels.atlases import (
    Atlas,
    atlas_of_bunch,
    atlas_of_file,
    atlas_of_image,
    is_named,
    named_atlas,
    require_same,
    require_standard,
    space_of_atlas,
    space_of_name,
)
from mcsp.data_sharding.parcels.parcellation import Parcels, require_places
from mcsp.data_sharding.parcels.parcellation import parcel_table as read_table
from mcsp.data_sharding.parcels.series import EXTENSIONS
from mcsp.encode.parcellations import PRETRAINING, atlas_of_pretraining, parcellation_name, parcellation_sha256
from mcsp.encode.recording import (
    ChannelStatus,
    EncodedRecording,
    Options,
    Report,
    as_recording,
    cleaning_of,
    encode_clean,
    min_seconds_of,
    recording_features,
    require_positions,
    window_steps,
)
from mcsp.model.weights import ExportedMCSP
from mcsp.schema import SCALE_FREE, Window
from mcsp.wording import listed

_MIN_SECONDS = 30.0
_EXPECTED_POSITIONS = "x, y, z [mm] in the parcellation's table, a label image, or a (P, 3) array of MNI positions"


@dataclass(frozen=True)
class Source:
    """Time series ``(T, P)`` before cleaning, and what goes with them."""

    name: str
    x_TP: np.ndarray
    parcels: Parcels
    t_r: float
    confounds: Confounds
    percent: bool


def encode_bold(
    model: ExportedMCSP,
    bold: Any,
    t_r: float | None = None,
    parcellation: Any = None,
    parcel_table: str | Path | None = None,
    percent: bool = False,
    require_known_parcellation: bool = False,
    options: Options | None = None,
    space: str | None = None,
) -> EncodedRecording:
    """Average parcels, clean as the pretraining corpus was cleaned, cut windows, encode them, average.

    Args:
        model: of :func:`mcsp.from_pretrained`.
        bold: a 4-D NIfTI (path or nibabel image) in a standard space; a table of parcels (``*_timeseries.tsv``,
            ``.1D``, ``.ptseries.nii``); or an array ``(T, P)`` as nilearn's maskers give it, best with its mean and not
            standardised. Values without a mean become arbitrary units, of which the model uses the shape alone.
        t_r: repetition time [s]; None: from the JSON sidecar. Checked against sidecar and header.
        parcellation: label image (path or nibabel image), name of an atlas, what a fetcher of nilearn returned, or one
            of its maskers of labels or spheres; for tables and arrays also a table, or ``"pretraining"``, the atlas
            that came with the model; for arrays ``(P, 3)`` MNI positions [mm]. None: the dataset's own.
        parcel_table: ``*_dseg.tsv`` with index, name and, where known, x, y, z; None: the one beside the label image.
        percent: an array or table is in percent signal change already.
        require_known_parcellation: refuse a parcellation that was not in the pretraining data. Without, any will do,
            because parcels are known to the model by their position; the report warns.
        options: windows and limits.
        space: standard space of an image, and of its label image, where their names do not say it, as
            ``"MNI152NLin6Asym"``: an atlas is laid over an image of the same space alone.

    Raises:
        ValueError: one line that says what is wrong: another t_r, an ambiguous shape, no baseline, NaN, parcels without
            position, another parcellation; ``RecordingError``, with a ``reason``, where a corpus would have refused it.
    """
    options = options or Options()
    config = cleaning_of(model, "fmri", FmriConfig)
    name = name_of(bold)
    min_seconds = min_seconds_of(model, "fmri", options, _MIN_SECONDS)
    with naming(name):
        known = model.preprocessing.get("parcellations", [])
        source = source_of(bold, t_r, parcellation, parcel_table, space, percent, config, known)
        require_length(len(source.x_TP), source.t_r, min_seconds)
        clean = clean_bold(
            source.x_TP, source.parcels, source.t_r, source.confounds, config, min_seconds, source.percent
        )
    require_places(source.parcels, 1.0, name)
    require_positions(clean, name, options.min_channels, _EXPECTED_POSITIONS)
    steps, warnings = _parcellation(model, source, require_known_parcellation)
    features_WF, starts_W, seconds = encode_clean(model, "fmri", clean, name, options)
    windows, about_windows = window_steps(model, "fmri", clean, starts_W, seconds)
    report = _report(model, source, clean, config, {**steps, "windows": windows}, [*warnings, *about_windows])
    features_F = recording_features(model, Window(clean.x_TC, as_recording(clean, "fmri"), 0), features_WF)
    return EncodedRecording(features_F, features_WF, starts_W, seconds, report)


def _parcellation(model: ExportedMCSP, source: Source, require_known: bool) -> tuple[dict[str, str], list[str]]:
    """What the report says of the parcellation; raise ``ValueError`` if it has to be known and is not."""
    parcels = source.parcels
    found = parcellation_sha256(parcels.names, parcels.positions_P3)
    of_export: list[dict[str, Any]] = model.preprocessing.get("parcellations", [])
    line = f"{len(parcels.names)} parcels, sha256 {found[:12]}"
    match = next((known for known in of_export if known["sha256"] == found), None)
    if match is not None:
        return {"parcellation": f"{line}, as in pretraining ({listed(match['sites'])})"}, []
    seen = listed([f"{known['sha256'][:12]} of {parcellation_name(known)}" for known in of_export]) or "none"
    if require_known:
        raise ValueError(f"{source.name}: parcellation with {line}, expected one of pretraining: {seen}")
    names = parcellation_sha256(parcels.names)
    same = next((known for known in of_export if known["names_sha256"] == names), None)
    why = "same names at other positions" if same else "it takes part by its positions alone"
    warning = f"parcellation {found[:12]} was not in the pretraining data, which had {seen}; {why}"
    return {"parcellation": f"{line}, NOT seen in pretraining"}, [warning]


def _report(
    model: ExportedMCSP,
    source: Source,
    clean: CleanRecording,
    config: FmriConfig,
    steps: dict[str, str],
    warnings: list[str],
) -> Report:
    statuses = []
    for c, name in enumerate(clean.channels):
        place = "parcellation" if np.isfinite(clean.positions_C3[c]).all() else ""
        reason = "" if clean.channel_good_C[c] else "no signal or no baseline"
        reason = reason or ("" if place else "no position")
        statuses.append(ChannelStatus(name, name, not reason, reason, place))
    seconds = clean.seconds
    bad = [f.name for f in statuses if f.reason and f.reason != "no position"]
    unplaced = [f.name for f in statuses if f.reason == "no position"]
    regressed = source.confounds.regressors_TK
    if regressed is None and config.confounds:
        warnings = [*warnings, f"no confounds were regressed out here; in pretraining: {', '.join(config.confounds)}"]
    if source.confounds.steady_T is None and config.max_fd_mm is not None:
        warnings = [*warnings, f"motion is unknown; in pretraining volumes above {config.max_fd_mm:g} mm were masked"]
    trained: list[str] = model.preprocessing.get("units", {}).get("fmri", clean.unit).split(" or ")
    if clean.unit not in trained:
        warnings = [*warnings, f"values in {clean.unit}; in pretraining {' or '.join(trained)}"]
    band = "no band-pass" if config.bandpass_hz is None else "{:g} to {:g} Hz".format(*config.bandpass_hz)
    masked = clean.quality["artefact_fraction"] * seconds
    lines = {
        "read": f"{len(clean.x_TC)} volumes of {source.t_r:g} s, {seconds:.0f} s",
        "parcels": f"{sum(f.used for f in statuses)} used; {len(bad)} without signal, {len(unplaced)} without position",
        "no signal": listed(bad),
        "no position": listed(unplaced),
        "unit": "arbitrary: the series has no mean, so its amplitude has no meaning"
        if clean.unit == SCALE_FREE
        else "percent signal change" + (" already" if source.percent else " of each parcel's mean"),
        "cleaned": f"{'detrended, ' if config.detrend else ''}{band}, "
        f"{0 if regressed is None else regressed.shape[1]} confounds regressed out",
        "amplitude": f"{clean.quality['amplitude']:.2f} percent, median over parcels"
        if "amplitude" in clean.quality
        else "",
        "motion": f"{masked:.0f} of {seconds:.0f} s are masked" if masked else "",
        "repaired": "; ".join(clean.repairs),
        **steps,
    }
    return Report(source.name, "fmri", tuple(statuses), {k: v for k, v in lines.items() if v}, tuple(warnings))


def name_of(bold: Any) -> str:
    """What errors call the recording."""
    if isinstance(bold, str | Path):
        return Path(bold).name
    file = bold.get_filename() if hasattr(bold, "get_filename") else None
    return Path(file).name if file else f"BOLD {type(bold).__name__}"


def source_of(
    bold: Any,
    t_r: float | None,
    parcellation: Any,
    parcel_table: str | Path | None,
    space: str | None,
    percent: bool,
    config: FmriConfig,
    pretraining: Sequence[Mapping[str, Any]],
) -> Source:
    """Time series of whatever :func:`mcsp.encode.bold.encode_bold` takes; ``pretraining``: parcellations seen there."""

    if t_r is not None:
        plausible_t_r(float(t_r))
    if isinstance(parcellation, str) and parcellation.partition(":")[0] == PRETRAINING:
        n_parcels = bold.shape[1] if isinstance(bold, np.ndarray) and bold.ndim == 2 else None
        parcellation = atlas_of_pretraining(pretraining, parcellation, n_parcels)
    if isinstance(bold, str | Path):
        return _of_file(Path(bold), t_r, _atlas(parcellation, parcel_table, space), space, percent, config)
    if hasattr(bold, "dataobj") and hasattr(bold, "affine"):
        atlas = None if parcellation is None else _atlas(parcellation, parcel_table, space)
        return _of_image(bold, t_r, atlas, space, config)
    return _of_array(np.asarray(bold), t_r, parcellation, parcel_table, percent)


def _of_file(
    path: Path, t_r: float | None, atlas: Atlas | None, space: str | None, percent: bool, config: FmriConfig
) -> Source:
    """Read a file with the companions of its BIDS dataset; a table of another format (``.csv``, ``.npy``) by itself."""

    known = (".nii", ".nii.gz", *EXTENSIONS)
    if not path.name.endswith(known):
        raise ValueError(f"{path.name}: expected {', '.join(known)}")
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    ref = ref_of_file(path, "fmri")
    if space is not None:
        config = config.model_copy(update={"image_space": space})
    if is_image(path) and atlas is not None and atlas.voxels_XYZ is None:
        raise ValueError(f"{path.name}: expected a label image as parcellation, found positions alone")
    with reading(ref.site.root):
        sidecar = read_sidecar(ref)
        if t_r is None:
            t_r = repetition_time(sidecar, ref)
        elif {"RepetitionTime", "SamplingFrequency"} & sidecar.keys():
            stated = repetition_time(sidecar, ref)
            if abs(stated - t_r) > 0.01 * stated:
                raise RecordingError("t_r-mismatch", f"t_r is given as {t_r:g} s, the sidecar says {stated:g} s")
        x_TP, parcels = read_time_series(ref, t_r, config, atlas)
        x_TP, confounds = with_confounds(ref, x_TP, config)
    return Source(path.name, x_TP, parcels, t_r, confounds, percent or in_percent(sidecar))


def _of_image(image: Any, t_r: float | None, atlas: Atlas | None, space: str | None, config: FmriConfig) -> Source:
    """Average an image in memory over a label image; its confounds are not known."""

    name = name_of(image)
    if t_r is None:
        raise ValueError(f"{name}: expected t_r in seconds: an image's header alone is not trusted")
    if atlas is None:
        raise ValueError(f"{name}: expected a label image as parcellation, found None")
    if config.confounds or config.max_fd_mm is not None:
        raise RecordingError(
            "missing-confounds", "pretraining used confounds of fMRIPrep: pass the path of the image beside them"
        )
    file = image.get_filename() if hasattr(image, "get_filename") else None
    image_space = (space_of_name(Path(file)) if file else "") or space or ""
    with reading(Path(".")):
        require_standard(image_space, name)
        require_same(image_space, name, atlas.parcels.space, atlas.name)
        x_TP, parcels = average_parcels(image, name, atlas, t_r, config.min_parcel_coverage)
    return Source(name, x_TP, parcels, t_r, Confounds(), False)


def _atlas(parcellation: Any, parcel_table: str | Path | None, space: str | None) -> Atlas | None:
    """The atlas that the user means: a name, a label image or table, an image in memory, a Bunch or masker of nilearn.

    ``space`` is that of an atlas which does not say its own.
    """

    if parcellation is None:
        return None if parcel_table is None else atlas_of_file(_table_path(parcel_table))
    if isinstance(parcellation, Atlas):
        return parcellation
    if hasattr(parcellation, "labels_img"):  # a masker of nilearn
        parcellation = parcellation.labels_img
    rows = read_table(_table_path(parcel_table)) if parcel_table is not None else []
    if isinstance(parcellation, str) and is_named(parcellation):
        return named_atlas(parcellation)
    if isinstance(parcellation, str | Path):
        path = Path(parcellation)
        if not path.is_file():
            raise ValueError(f"{parcellation}: no such label image, table, or atlas that is known by name")
        return atlas_of_file(path, rows, space_of_atlas(path) or space or "")
    if isinstance(parcellation, Mapping):
        return atlas_of_bunch(
            parcellation, space="" if "?" not in str(parcellation.get("template", "?")) else space or ""
        )
    if not hasattr(parcellation, "dataobj"):
        raise ValueError(f"parcellation: expected a label image, found {type(parcellation).__name__}")
    file = parcellation.get_filename()
    stated = space_of_atlas(Path(file)) if file else ""
    return atlas_of_image(parcellation, Path(file).name if file else "label image", rows, stated or space or "")


def _table_path(table: str | Path) -> Path:
    if not str(table).endswith(".tsv"):
        raise ValueError(f"{table}: expected a *_dseg.tsv with index, name and x, y, z in mm")
    if not Path(table).is_file():
        raise ValueError(f"{table}: no such table of parcels")
    return Path(table)


def _of_array(
    x_TP: np.ndarray, t_r: float | None, parcellation: Any, parcel_table: str | Path | None, percent: bool
) -> Source:
    """Check an array ``(T, P)`` against the parcellation of its columns."""

    if x_TP.dtype == object:
        raise ValueError(
            "BOLD: expected a path, an image or an array of one run, as func[0] of a Bunch; found another object"
        )
    if x_TP.ndim != 2 or x_TP.dtype.kind not in "fiu":
        raise ValueError(f"BOLD array: expected numbers of shape (volumes, parcels), found {x_TP.dtype} {x_TP.shape}")
    if t_r is None:
        raise ValueError("BOLD array: expected t_r in seconds, found None")
    parcels = _parcels(parcellation, parcel_table)
    n_parcels = len(parcels.names)
    if x_TP.shape == (n_parcels, n_parcels):
        found = f"shape {x_TP.shape} with {n_parcels} parcels"
        raise ValueError(f"BOLD array: {found} does not say which axis is time: leave out a volume")
    if x_TP.shape[1] != n_parcels:
        turned = "; pass its transpose" if x_TP.shape[0] == n_parcels else ""
        raise ValueError(
            f"BOLD array: shape {x_TP.shape}, expected (volumes, {n_parcels}) for {n_parcels} parcels{turned}"
        )
    return Source("BOLD array", x_TP.astype(np.float64), parcels, float(t_r), Confounds(), percent)


def _parcels(parcellation: Any, parcel_table: str | Path | None) -> Parcels:
    """Parcels of an array's columns."""

    if parcellation is None and parcel_table is None:
        raise ValueError(
            "BOLD array: expected a parcellation: a label image, an atlas's name, (P, 3) MNI positions, or a *_dseg.tsv"
        )
    if hasattr(parcellation, "seeds"):  # a masker of nilearn's spheres
        parcellation = parcellation.seeds
    is_atlas = isinstance(parcellation, str | Path | Mapping | Atlas) or hasattr(parcellation, "dataobj")
    if parcellation is None or is_atlas or hasattr(parcellation, "labels_img"):
        atlas = _atlas(parcellation, parcel_table, None)
        assert atlas is not None
        return atlas.parcels
    positions_P3 = np.asarray(parcellation, dtype=np.float64)
    if positions_P3.ndim != 2 or positions_P3.shape[1] != 3:
        raise ValueError(f"parcellation: expected MNI positions of shape (P, 3), found {positions_P3.shape}")
    names = [f"parcel-{i}" for i in range(1, len(positions_P3) + 1)]
    if parcel_table is not None:
        names = [row[0] for row in read_table(_table_path(parcel_table))]
        if len(names) != len(positions_P3):
            expected = f"expected one for each of {len(positions_P3)} positions"
            raise ValueError(f"{parcel_table}: {len(names)} rows, {expected}")
    return Parcels(names, [], positions_P3)
