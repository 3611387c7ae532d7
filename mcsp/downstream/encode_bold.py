"""Encode one run of BOLD, an image, a table or an array, cleaned exactly as the recordings of the pretraining corpus.

Shape letters: T volumes, P parcels.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mcsp.config import FmriConfig
from mcsp.downstream.encode import (
    ChannelFate,
    EncodedRecording,
    Options,
    Report,
    cleaning_of,
    encode_clean,
    listed,
    min_seconds_of,
    require_packages,
    require_positions,
    window_steps,
)
from mcsp.downstream.parcellations import parcellation_sha256

if TYPE_CHECKING:
    from mcsp.data_sharding.bids import RecordingRef
    from mcsp.data_sharding.fmri_confounds import Confounds
    from mcsp.data_sharding.fmri_parcels import Parcels
    from mcsp.data_sharding.recording import CleanRecording
    from mcsp.model.pretrained import PretrainedMCSP

_MIN_SECONDS = 30.0
# Robust amplitude [percent] that BOLD of a parcel can have, and how far from the origin [mm] a parcel can lie. Ours.
_AMPLITUDE_PERCENT = (0.01, 20.0)
_REACH_MM = (10.0, 150.0)
_EXPECTED_POSITIONS = "x, y, z [mm] in the parcellation's table, a label image, or a (P, 3) array of MNI positions"


@dataclass(frozen=True)
class _Source:
    name: str
    x_TP: np.ndarray
    parcels: "Parcels"
    t_r: float
    confounds: "Confounds"
    percent: bool


def encode_bold(
    model: "PretrainedMCSP",
    bold: Any,
    t_r: float | None = None,
    parcellation: Any = None,
    parcel_table: str | Path | None = None,
    percent: bool = False,
    require_known_parcellation: bool = False,
    options: Options | None = None,
) -> EncodedRecording:
    """Average parcels, clean as the pretraining corpus was cleaned, cut windows, encode them, average.

    Args:
        model: of :func:`mcsp.from_pretrained`.
        bold: a 4-D NIfTI (path or nibabel image) in a standard space; a table of parcels (``*_timeseries.tsv``,
            ``.1D``, ``.ptseries.nii``); or an array ``(T, P)`` as nilearn's maskers give it, with its mean and not
            standardised.
        t_r: repetition time [s]; None: from the JSON sidecar. Checked against sidecar and header.
        parcellation: label image (path or nibabel image) for images and arrays; or ``(P, 3)`` MNI positions [mm] for
            arrays. None: the ``*_dseg`` files of the BIDS dataset.
        parcel_table: ``*_dseg.tsv`` with index, name and, where known, x, y, z; None: the one beside the label image.
        percent: an array is in percent signal change already.
        require_known_parcellation: refuse a parcellation that was not in the pretraining data. Without, any will do,
            because parcels are known to the model by their position; the report warns.
        options: windows and limits.

    Raises:
        ValueError: one line that says what is wrong: another t_r, an ambiguous shape, no baseline, NaN, parcels without
            position, another parcellation; ``RecordingError``, with a ``reason``, where a corpus would have refused it.
    """
    require_packages("nibabel", "pandas", "scipy")
    from mcsp.data_sharding.fmri import clean_bold, plausible_t_r, require_length
    from mcsp.data_sharding.recording import naming

    options = options or Options()
    config = cleaning_of(model, "fmri", FmriConfig)
    name = _name_of(bold)
    min_seconds = min_seconds_of(model, "fmri", options, _MIN_SECONDS)
    with naming(name):
        if t_r is not None:
            plausible_t_r(float(t_r))
        if isinstance(bold, str | Path):
            source = _of_file(Path(bold), t_r, parcellation, parcel_table, config)
        elif hasattr(bold, "dataobj") and hasattr(bold, "affine"):
            source = _of_image(bold, t_r, parcellation, parcel_table, config)
        else:
            source = _of_array(np.asarray(bold), t_r, parcellation, parcel_table, percent)
        require_length(len(source.x_TP), source.t_r, min_seconds)
        clean = clean_bold(
            source.x_TP, source.parcels, source.t_r, source.confounds, config, min_seconds, source.percent
        )
    _check_values(source, clean)
    require_positions(clean, name, options.min_channels, _EXPECTED_POSITIONS)
    steps, warnings = _parcellation(model, source, require_known_parcellation)
    features_WF, starts_W, seconds = encode_clean(model, "fmri", clean, name, options)
    windows, about_windows = window_steps(model, "fmri", clean, starts_W, seconds)
    report = _report(source, clean, config, {**steps, "windows": windows}, [*warnings, *about_windows])
    return EncodedRecording(features_WF.mean(axis=0), features_WF, starts_W, seconds, report)


def _name_of(bold: Any) -> str:
    """What errors call the recording."""
    if isinstance(bold, str | Path):
        return Path(bold).name
    file = bold.get_filename() if hasattr(bold, "get_filename") else None
    return Path(file).name if file else f"BOLD {type(bold).__name__}"


def _of_file(
    path: Path, t_r: float | None, parcellation: Any, parcel_table: str | Path | None, config: FmriConfig
) -> _Source:
    from mcsp.data_sharding.bids import read_sidecar, ref_of_file
    from mcsp.data_sharding.fmri import in_percent, repetition_time
    from mcsp.data_sharding.fmri_confounds import read_confounds
    from mcsp.data_sharding.fmri_files import read_time_series
    from mcsp.data_sharding.recording import RecordingError, reading

    known = (".nii", ".nii.gz", ".tsv", ".1D")
    if not path.name.endswith(known):
        raise ValueError(f"{path.name}: expected {', '.join(known)}")
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    is_image = path.name.endswith((".nii", ".nii.gz")) and not path.name.endswith(".ptseries.nii")
    ref = _with_parcellation(ref_of_file(path, "fmri"), parcellation, parcel_table, is_image)
    labels = None
    if is_image and not isinstance(parcellation, str | Path | None):
        labels = _label_image(parcellation, parcel_table)
    with reading(ref.site.root):
        sidecar = read_sidecar(ref)
        if t_r is None:
            t_r = repetition_time(sidecar)
        elif {"RepetitionTime", "SamplingFrequency"} & sidecar.keys():
            stated = repetition_time(sidecar)
            if abs(stated - t_r) > 0.01 * stated:
                raise RecordingError("t_r-mismatch", f"t_r is given as {t_r:g} s, the sidecar says {stated:g} s")
        if labels is not None:
            x_TP, parcels = _average(_load(path), path.name, labels, t_r, config)
        else:
            x_TP, parcels = read_time_series(ref, t_r, config.min_parcel_coverage)
        confounds = read_confounds(ref, len(x_TP), config)
    return _Source(path.name, x_TP, parcels, t_r, confounds, in_percent(sidecar))


def _with_parcellation(
    ref: "RecordingRef", parcellation: Any, parcel_table: str | Path | None, is_image: bool
) -> "RecordingRef":
    """The reference with the label image and the table that the user named in place of those of the dataset."""
    companions = dict(ref.companions)
    if is_image and isinstance(parcellation, str | Path):
        if not Path(parcellation).is_file():
            raise ValueError(f"{parcellation}: no such label image")
        ref = replace(ref, site=replace(ref.site, label_image=Path(parcellation)))
    elif not is_image and isinstance(parcellation, str | Path):
        parcel_table = parcel_table or parcellation
    if parcel_table is not None:
        companions["dseg.tsv"] = (_table_path(parcel_table),)
    return replace(ref, companions=companions)


def _table_path(table: str | Path) -> Path:
    if not str(table).endswith(".tsv"):
        raise ValueError(f"{table}: expected a *_dseg.tsv with index, name and x, y, z in mm")
    if not Path(table).is_file():
        raise ValueError(f"{table}: no such table of parcels")
    return Path(table)


def _of_image(
    image: Any, t_r: float | None, parcellation: Any, parcel_table: str | Path | None, config: FmriConfig
) -> _Source:
    from mcsp.data_sharding.fmri_confounds import Confounds
    from mcsp.data_sharding.recording import RecordingError, reading

    name = _name_of(image)
    if t_r is None:
        raise ValueError(f"{name}: expected t_r in seconds: an image's header alone is not trusted")
    if parcellation is None:
        raise ValueError(f"{name}: expected a label image as parcellation, found None")
    if config.confounds or config.max_fd_mm is not None:
        raise RecordingError(
            "missing-confounds", "pretraining used confounds of fMRIPrep: pass the path of the image beside them"
        )
    labels = _label_image(parcellation, parcel_table)
    with reading(Path(".")):
        x_TP, parcels = _average(image, name, labels, t_r, config)
    return _Source(name, x_TP, parcels, t_r, Confounds(), False)


def _average(
    image: Any, name: str, parcellation: tuple[Any, str, list[Any]], t_r: float, config: FmriConfig
) -> tuple[np.ndarray, "Parcels"]:
    from mcsp.data_sharding.fmri_files import Named, average_parcels

    labels, label_name, rows = parcellation
    return average_parcels(Named(image, name), Named(labels, label_name), rows, t_r, config.min_parcel_coverage)


def _load(path: str | Path) -> Any:
    import nibabel

    return nibabel.load(path, keep_file_open=True)


def _label_image(parcellation: Any, parcel_table: str | Path | None) -> tuple[Any, str, list[Any]]:
    """A label image, its name, and the rows of its table."""
    from mcsp.data_sharding.bids import ref_of_file
    from mcsp.data_sharding.fmri_parcels import parcel_table as read_table
    from mcsp.data_sharding.fmri_parcels import table_beside

    rows = read_table(_table_path(parcel_table)) if parcel_table is not None else []
    if isinstance(parcellation, str | Path):
        path = Path(parcellation)
        if not path.is_file():
            raise ValueError(f"{path}: no such label image")
        return _load(path), path.name, rows or table_beside(path, ref_of_file(path, "fmri"))
    if not hasattr(parcellation, "dataobj"):
        raise ValueError(f"parcellation: expected a label image, found {type(parcellation).__name__}")
    return parcellation, "label image", rows


def _of_array(
    x_TP: np.ndarray,
    t_r: float | None,
    parcellation: Any,
    parcel_table: str | Path | None,
    percent: bool,
) -> _Source:
    from mcsp.data_sharding.fmri_confounds import Confounds

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
    return _Source("BOLD array", x_TP.astype(np.float64), parcels, float(t_r), Confounds(), percent)


def _parcels(parcellation: Any, parcel_table: str | Path | None) -> "Parcels":
    """Parcels of an array's columns."""
    from mcsp.data_sharding.fmri_parcels import Parcels, image_parcels
    from mcsp.data_sharding.fmri_parcels import parcel_table as read_table

    if parcellation is None and parcel_table is None:
        raise ValueError("BOLD array: expected a parcellation: a label image, (P, 3) MNI positions, or a *_dseg.tsv")
    if parcellation is None or str(parcellation).endswith(".tsv"):
        rows = read_table(_table_path(parcel_table or parcellation))
        return Parcels([row[0] for row in rows], [], np.array([row[2] for row in rows], dtype=np.float64))
    if isinstance(parcellation, str | Path) or hasattr(parcellation, "dataobj"):
        return image_parcels(*_label_image(parcellation, parcel_table))[0]
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


def _check_values(source: _Source, clean: "CleanRecording") -> None:
    """Raise ``ValueError`` for amplitudes that are no percent signal change, and positions that are no millimetres."""
    amplitude = clean.quality["amplitude"]
    low, high = _AMPLITUDE_PERCENT
    if not low <= amplitude <= high:
        raise ValueError(
            f"{source.name}: median amplitude of the parcels is {amplitude:.3g} percent, expected {low:g} to {high:g}: "
            "is it percent signal change?"
        )
    reach = np.nanmax(np.abs(clean.positions_C3), initial=0.0)
    if np.isfinite(clean.positions_C3).any() and not _REACH_MM[0] <= reach <= _REACH_MM[1]:
        raise ValueError(
            f"{source.name}: parcels lie up to {reach:.3g} mm from the origin, expected {_REACH_MM[0]:g} to "
            f"{_REACH_MM[1]:g}: MNI millimetres, no voxels or metres"
        )


def _parcellation(model: "PretrainedMCSP", source: _Source, require_known: bool) -> tuple[dict[str, str], list[str]]:
    """What the report says of the parcellation; raise ``ValueError`` if it has to be known and is not."""
    parcels = source.parcels
    found = parcellation_sha256(parcels.names, parcels.positions_P3)
    of_export: list[dict[str, Any]] = model.preprocessing.get("parcellations", [])
    line = f"{len(parcels.names)} parcels, sha256 {found[:12]}"
    match = next((known for known in of_export if known["sha256"] == found), None)
    if match is not None:
        return {"parcellation": f"{line}, as in pretraining ({listed(match['sites'])})"}, []
    seen = listed([f"{known['sha256'][:12]} ({known['parcels']} parcels)" for known in of_export]) or "none"
    if require_known:
        raise ValueError(f"{source.name}: parcellation with {line}, expected one of pretraining: {seen}")
    names = parcellation_sha256(parcels.names)
    same = next((known for known in of_export if known["names_sha256"] == names), None)
    why = "same names at other positions" if same else "it takes part by its positions alone"
    warning = f"parcellation {found[:12]} was not in the pretraining data, which had {seen}; {why}"
    return {"parcellation": f"{line}, NOT seen in pretraining"}, [warning]


def _report(
    source: _Source, clean: "CleanRecording", config: FmriConfig, steps: dict[str, str], warnings: list[str]
) -> Report:
    fates = []
    for c, name in enumerate(clean.channels):
        place = "parcellation" if np.isfinite(clean.positions_C3[c]).all() else ""
        reason = "" if clean.channel_good_C[c] else "no signal or no baseline"
        reason = reason or ("" if place else "no position")
        fates.append(ChannelFate(name, name, not reason, reason, place))
    seconds = len(clean.x_TC) / clean.sfreq
    bad = [f.name for f in fates if f.reason and f.reason != "no position"]
    unplaced = [f.name for f in fates if f.reason == "no position"]
    regressed = source.confounds.regressors_TK
    if regressed is None and config.confounds:
        warnings = [*warnings, f"no confounds were regressed out here; in pretraining: {', '.join(config.confounds)}"]
    if source.confounds.steady_T is None and config.max_fd_mm is not None:
        warnings = [*warnings, f"motion is unknown; in pretraining volumes above {config.max_fd_mm:g} mm were masked"]
    band = "no band-pass" if config.bandpass_hz is None else "{:g} to {:g} Hz".format(*config.bandpass_hz)
    masked = clean.quality["artefact_fraction"] * seconds
    lines = {
        "read": f"{len(clean.x_TC)} volumes of {source.t_r:g} s, {seconds:.0f} s",
        "parcels": f"{sum(f.used for f in fates)} used; {len(bad)} without signal, {len(unplaced)} without position",
        "no signal": listed(bad),
        "no position": listed(unplaced),
        "unit": "percent signal change" + (" already" if source.percent else " of each parcel's mean"),
        "cleaned": f"{'detrended, ' if config.detrend else ''}{band}, "
        f"{0 if regressed is None else regressed.shape[1]} confounds regressed out",
        "amplitude": f"{clean.quality['amplitude']:.2f} percent, median over parcels",
        "motion": f"{masked:.0f} of {seconds:.0f} s are masked" if masked else "",
        **steps,
    }
    return Report(source.name, "fmri", tuple(fates), {k: v for k, v in lines.items() if v}, tuple(warnings))
