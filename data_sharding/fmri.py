"""Read and clean BOLD: parcellated time series and 4-D images become float32 percent signal change per parcel.

Positions are millimetres in the space of the parcellation (MNI as a rule). Shape letters: T volumes, P parcels.
"""

from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
from nibabel.affines import apply_affine
from scipy import ndimage

from mcsp.config import FmriConfig
from mcsp.data_sharding.bids import RecordingRef, parse_name, read_sidecar, read_tsv
from mcsp.data_sharding.recording import CleanRecording, RecordingError, require_good, robust_amplitude, summarise

# t_r outside these bounds [s] is no seconds at all: the fastest sequences need some 0.2 s, the slowest about 10 s.
_T_R_BOUNDS = (0.05, 20.0)
# Header and sidecar may differ by rounding only.
_T_R_TOLERANCE = 0.01
# Mean over standard deviation (temporal SNR) below which a mean is no baseline. BOLD of a parcel has 30 to 400;
# at 5 the ordinary fluctuation would be 20 % of the signal, which no blood flow explains. Ours.
_MIN_BASELINE = 5.0
_PERCENT_UNITS = {"percent", "%", "percent signal change"}
_SECONDS_PER_UNIT = {"sec": 1.0, "msec": 1e-3, "usec": 1e-6, "unknown": 1.0}


@dataclass(frozen=True)
class Parcels:
    """The fixed list of parcels of a parcellation."""

    names: list[str]
    labels: list[int]  # voxel value of each parcel; empty for tables of time series
    positions_P3: np.ndarray  # mm, NaN where unknown


def read_fmri(ref: RecordingRef, config: FmriConfig, min_seconds: float) -> CleanRecording:
    """Read the BOLD time series of one run and turn it into percent signal change of each parcel's mean.

    t_r comes from the JSON sidecar, never from an image header alone; the header is checked against it.

    Returns:
        a recording in percent at 1 / t_r. Parcels that are absent, flat, non-finite or without a baseline are zero and
        marked bad, so the list of parcels is the same for every recording of a site.

    Raises:
        RecordingError: with the reason.
        Exception: whatever pandas and nibabel raise on a damaged file; see ``shards.read_recording``.
    """
    sidecar = read_sidecar(ref)
    t_r = repetition_time(sidecar)
    if ref.path.name.endswith(".tsv"):
        x_TP, parcels = _read_table(ref)
    else:
        x_TP, parcels = _read_image(ref, t_r)
    if len(x_TP) * t_r < min_seconds:
        raise RecordingError("too-short", f"{len(x_TP) * t_r:.1f} s, expected at least {min_seconds:g} s")
    percent = str(sidecar.get("Units", "")).lower() in _PERCENT_UNITS
    x_TP, good_P = percent_signal_change(x_TP, already_percent=percent)
    if config.detrend:
        x_TP = detrend(x_TP)
    return CleanRecording(
        x_TC=np.ascontiguousarray(x_TP, dtype=np.float32),
        sfreq=1 / t_r,
        channels=parcels.names,
        positions_C3=parcels.positions_P3,
        channel_good_C=good_P,
        valid_spans=[0, len(x_TP)],
        quality=summarise(robust_amplitude(x_TP.T), good_P, 0.0),
    )


def repetition_time(sidecar: dict[str, object]) -> float:
    """t_r [s] of a sidecar: RepetitionTime, else 1 / SamplingFrequency; raise :class:`RecordingError`."""
    for key in ("RepetitionTime", "SamplingFrequency"):
        value = sidecar.get(key)
        if isinstance(value, int | float) and value > 0:
            t_r = float(value) if key == "RepetitionTime" else 1 / float(value)
            if not _T_R_BOUNDS[0] <= t_r <= _T_R_BOUNDS[1]:
                bounds = f"{_T_R_BOUNDS[0]:g} to {_T_R_BOUNDS[1]:g} s"
                raise RecordingError("t_r-mismatch", f"{key} of the sidecar gives t_r {t_r:g}, expected {bounds}")
            return t_r
    raise RecordingError("missing-t_r", "no RepetitionTime in the JSON sidecar, expected seconds")


def percent_signal_change(x_TP: np.ndarray, already_percent: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Percent of each parcel's mean, with the mean removed.

    Args:
        x_TP: scanner units with their mean; or percent (``already_percent``), of which only the mean is removed.

    Returns:
        percent ``(T, P)``, zero for bad parcels, and which parcels are good, bool ``(P,)``.

    Raises:
        RecordingError: non-finite, flat, or demeaned values (``no-baseline``).
    """
    finite_P = np.isfinite(x_TP).all(axis=0)
    x_TP = np.where(finite_P, x_TP, 0.0)
    mean_P, spread_P = x_TP.mean(axis=0), x_TP.std(axis=0)
    good_P = require_good(finite_P, np.ptp(x_TP, axis=0) == 0)
    if already_percent:
        return np.where(good_P, x_TP - mean_P, 0.0), good_P
    baseline_P = mean_P / np.where(good_P, spread_P, 1.0)
    median = float(np.median(baseline_P[good_P]))
    if median < _MIN_BASELINE:
        detail = (
            f"median mean/deviation of the parcels is {median:.2g}, expected raw BOLD with at least {_MIN_BASELINE:g}"
        )
        raise RecordingError("no-baseline", detail)
    good_P &= baseline_P >= _MIN_BASELINE
    return np.where(good_P, 100.0 * (x_TP / np.where(good_P, mean_P, 1.0) - 1.0), 0.0), good_P


def detrend(x_TP: np.ndarray) -> np.ndarray:
    """Remove each column's least-squares line; written as sums, because BLAS results depend on the machine."""
    t_T1 = np.arange(len(x_TP), dtype=np.float64)[:, None] - (len(x_TP) - 1) / 2
    slope_P = (t_T1 * x_TP).sum(axis=0) / (t_T1**2).sum()
    return x_TP - x_TP.mean(axis=0) - t_T1 * slope_P


def _read_table(ref: RecordingRef) -> tuple[np.ndarray, Parcels]:
    frame = pd.read_csv(ref.path, sep="\t", na_values=["n/a"])
    if frame.empty:
        raise RecordingError("no-channels", "the table holds no time series")
    text = [str(name) for name, kind in frame.dtypes.items() if kind.kind not in "fiu"]
    if text:
        raise ValueError(f"column {text[0]!r} holds text, expected one number per volume and parcel")
    names = [str(name) for name in frame.columns]
    known = {name: xyz for name, _, xyz in _parcel_table(ref.companion("dseg.tsv"))}
    positions = np.array([known.get(name, (np.nan,) * 3) for name in names], dtype=np.float64)
    return frame.to_numpy(dtype=np.float64), Parcels(names, [], positions)


def _read_image(ref: RecordingRef, t_r: float) -> tuple[np.ndarray, Parcels]:
    # Costs seconds (scikit-learn), which sites with tables need not pay.
    from nilearn.maskers import NiftiLabelsMasker

    label_file = ref.site.label_image or ref.companion("dseg.nii.gz")
    if label_file is None:
        raise RecordingError(
            "no-label-image", "no *_dseg.nii.gz at the dataset's root and no label_image in the config"
        )
    image = nibabel.load(ref.path)
    if len(image.shape) != 4:
        raise ValueError(f"expected a 4-D image, found shape {image.shape}")
    _check_header(image, t_r)
    labels_image = nibabel.load(label_file)
    parcels = _image_parcels(labels_image, label_file, ref)
    masker = NiftiLabelsMasker(labels_image, standardize=None, resampling_target="data", reports=False)
    try:
        found_TP = masker.fit_transform(image)
    except ValueError as error:  # labels and image do not fit, for example in no voxel
        raise RecordingError("no-label-image", f"{label_file.name}: {' '.join(str(error).split())}") from None
    # Parcels outside the image's field of view are dropped by the masker and must keep their place here.
    column = {int(label): i for i, label in masker.region_ids_.items() if i != "background"}
    x_TP = np.full((len(found_TP), len(parcels.labels)), np.nan)
    for p, label in enumerate(parcels.labels):
        if label in column:
            x_TP[:, p] = found_TP[:, column[label]]
    return x_TP, parcels


def _check_header(image: nibabel.Nifti1Image, t_r: float) -> None:
    unit = image.header.get_xyzt_units()[1]
    header_t_r = float(image.header.get_zooms()[3]) * _SECONDS_PER_UNIT.get(unit, 1.0)
    if header_t_r > 0 and abs(header_t_r - t_r) > _T_R_TOLERANCE * t_r:
        detail = f"sidecar says {t_r:g} s, the image header {header_t_r:g} s (unit {unit})"
        raise RecordingError("t_r-mismatch", detail)


def _image_parcels(labels_image: nibabel.Nifti1Image, label_file: Path, ref: RecordingRef) -> Parcels:
    """Parcels of a label image, by label; names and positions from the table beside it where there is one."""
    voxels = np.asarray(labels_image.dataobj)
    present = [int(label) for label in np.unique(voxels) if label != 0]
    if not present or not np.array_equal(voxels, np.round(voxels)):
        raise RecordingError("no-label-image", f"{label_file.name} holds no integer labels")
    stem = label_file.name.split(".")[0]
    beside = label_file.with_name(stem + ".tsv")
    table = beside if beside.is_file() else ref.companion("dseg.tsv")
    rows = {index: (name, xyz) for name, index, xyz in _parcel_table(table) if index is not None}
    prefix = parse_name(label_file.name)[0].get("segmentation", "parcel")
    labels = sorted(set(present) | set(rows))
    centres = dict(zip(present, ndimage.center_of_mass(voxels != 0, voxels, present), strict=True))
    names, positions = [], []
    for label in labels:
        name, xyz = rows.get(label, (f"{prefix}-{label}", (np.nan,) * 3))
        if np.isnan(xyz).any() and label in centres:
            xyz = tuple(apply_affine(labels_image.affine, centres[label]))
        names.append(name)
        positions.append(xyz)
    return Parcels(names, labels, np.array(positions, dtype=np.float64))


def _parcel_table(table: Path | None) -> list[tuple[str, int | None, tuple[float, ...]]]:
    """Name, index and position [mm] of each row of a ``*_dseg.tsv`` (columns index, name and, where known, x, y, z)."""
    if table is None:
        return []
    return [
        (
            row.get("name", row.get("label", row.get("index", ""))),
            int(row["index"]) if "index" in row else None,
            tuple(float(row.get(axis, "nan")) for axis in "xyz"),
        )
        for row in read_tsv(table)
    ]
