"""Encode one run of BOLD, an image, a table or an array, cleaned exactly as the recordings of the pretraining corpus.

Shape letters: T volumes, P parcels.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mcsp.config import FmriConfig
from mcsp.encode.bold_source import Source, name_of, parcellation_name, parcellation_sha256, source_of
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
    require_packages,
    require_positions,
    window_steps,
)
from mcsp.schema import SCALE_FREE, Window
from mcsp.wording import listed

if TYPE_CHECKING:
    from mcsp.data_sharding.clean.recording import CleanRecording
    from mcsp.model.weights import ExportedMCSP

_MIN_SECONDS = 30.0
_EXPECTED_POSITIONS = "x, y, z [mm] in the parcellation's table, a label image, or a (P, 3) array of MNI positions"


def encode_bold(
    model: "ExportedMCSP",
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
    require_packages("nibabel", "pandas", "scipy")
    from mcsp.data_sharding.bids.reasons import naming
    from mcsp.data_sharding.clean.fmri import clean_bold, require_length
    from mcsp.data_sharding.parcels.parcellation import require_places

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


def _parcellation(model: "ExportedMCSP", source: Source, require_known: bool) -> tuple[dict[str, str], list[str]]:
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
    model: "ExportedMCSP",
    source: Source,
    clean: "CleanRecording",
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
