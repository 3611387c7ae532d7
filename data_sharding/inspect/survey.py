"""Content of a corpus per site and modality: distributions from its table, spectra and traces from a few windows.

Whole columns of the table are read, never whole rows, and at most :data:`SAMPLED` recordings of each site and modality
are opened, so that a million recordings take seconds and little memory.

Shape letters: T time samples, C channels, F frequencies.
"""

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
from scipy.signal import welch

from mcsp.data_sharding.store.files import Location, is_local, read_range
from mcsp.data_sharding.store.index import SHARDS_NAME
from mcsp.data_sharding.store.reader import Corpus
from mcsp.data_sharding.store.table import Recordings
from mcsp.outside import parse_json
from mcsp.schema import Modality, Recording, Window

# Recordings per site and modality that spectra are made of, and those of them that are drawn as traces.
SAMPLED = 12
_EXAMPLES = 2
_ROWS_AT_ONCE = 8192
EXAMPLE_CHANNELS = 8
_EXAMPLE_SECONDS: dict[Modality, float] = {"eeg": 10.0, "fmri": 300.0}
# Length of what is read for a spectrum, and of the pieces that Welch's method averages.
_SPECTRUM_SECONDS: dict[Modality, float] = {"eeg": 60.0, "fmri": 900.0}
_WELCH_SECONDS: dict[Modality, float] = {"eeg": 4.0, "fmri": 128.0}
# Where spectra of every site are compared [Hz].
FREQUENCIES: dict[Modality, np.ndarray] = {
    "eeg": np.concatenate([np.arange(0.5, 30, 0.5), np.arange(30, 100.1, 1.0)]),
    "fmri": np.round(np.arange(0.01, 0.5001, 0.005), 3),
}


@dataclass(frozen=True)
class Quantity:
    """A number that every recording has, or may have."""

    name: str
    title: dict[Modality, str]  # by modality, with the unit
    whole: bool = False


QUANTITIES = (
    Quantity("minutes", {"eeg": "Duration [min]", "fmri": "Duration [min]"}),
    Quantity("amplitude", {"eeg": "Amplitude [µV]", "fmri": "Amplitude [% of the mean]"}),
    Quantity("bad_channels", {"eeg": "Bad channels", "fmri": "Bad parcels"}, whole=True),
    Quantity("artefact_percent", {"eeg": "Time in artefacts [%]", "fmri": "Time in artefacts [%]"}),
    Quantity("mean_fd_mm", {"fmri": "Framewise displacement, mean [mm]"}),
    Quantity("mean_dvars", {"fmri": "DVARS, mean"}),
)


@dataclass
class Group:
    """All recordings of one modality and unit at one site."""

    site: str
    modality: Modality
    unit: str
    rows: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))  # of the table
    hours: float = 0.0
    sfreq: Counter[float] = field(default_factory=Counter)  # Hz -> recordings
    channels: Counter[int] = field(default_factory=Counter)  # number of channels -> recordings
    values: dict[str, np.ndarray] = field(default_factory=dict)  # quantity -> finite values
    quartiles_3F: np.ndarray | None = None  # power at FREQUENCIES
    n_spectra: int = 0
    examples: list[Window] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)


def survey(corpus: Corpus, place: "Location | None" = None) -> list[Group]:
    """Distributions, spectra and examples of every site, modality and unit, sorted by these.

    Of a corpus in an object store, which is ``place``, only the windows are read, not the shards that hold them.
    """
    groups = table_groups(corpus.recordings)
    for group in groups:
        _sample(corpus, place or corpus.path, group)
    return groups


def table_groups(table: Recordings) -> list[Group]:
    """The groups of :func:`survey` with what the table alone says."""
    site_codes, sites = table.codes("site")
    modality_codes, modalities = table.codes("modality")
    unit_codes, units = table.codes("unit")
    sfreq, channels = table.column("sfreq"), table.column("n_channels")
    quantities = {"minutes": table.column("n_samples") / sfreq / 60, **_quality(table)}
    codes = (site_codes.astype(np.int64) * len(modalities) + modality_codes) * len(units) + unit_codes
    order = np.argsort(codes, kind="stable")
    groups = []
    for rows in np.split(order, np.flatnonzero(np.diff(codes[order])) + 1) if len(order) else []:
        site, modality = sites[site_codes[rows[0]]], modalities[modality_codes[rows[0]]]
        group = Group(site, modality, units[unit_codes[rows[0]]], rows, float(quantities["minutes"][rows].sum() / 60))
        group.sfreq.update(sfreq[rows].tolist())
        group.channels.update(channels[rows].tolist())
        for quantity in QUANTITIES:
            values = quantities[quantity.name][rows]
            if modality in quantity.title and np.isfinite(values).any():
                group.values[quantity.name] = values[np.isfinite(values)]
        groups.append(group)
    return sorted(groups, key=lambda g: (g.site, g.modality, g.unit))


def _quality(table: Recordings) -> dict[str, np.ndarray]:
    """Columns of the quality measures, NaN where a recording has none."""
    names = ("amplitude", "bad_channels", "artefact_fraction", "mean_fd_mm", "mean_dvars")
    measures = {name: np.full(len(table), np.nan, dtype=np.float32) for name in names}
    for start in range(0, len(table), _ROWS_AT_ONCE):
        rows = np.arange(start, min(start + _ROWS_AT_ONCE, len(table)))
        for row, text in enumerate(table.texts("quality", rows), start):
            for name, value in parse_json(text).items():
                if name in measures:
                    measures[name][row] = value
    measures["artefact_percent"] = 100 * measures.pop("artefact_fraction")
    return measures


def _sample(corpus: Corpus, place: Location, group: Group) -> None:
    """Fill in spectra and examples from recordings that are spread evenly over the group."""
    places = np.unique(np.linspace(0, len(group.rows) - 1, SAMPLED).round().astype(int))
    chosen = [corpus.recordings[int(row)] for row in group.rows[places]]
    spectra = []
    for recording in chosen:
        try:
            spectra.append(_power(_middle(corpus, place, recording, _SPECTRUM_SECONDS[group.modality])))
        except ValueError as error:
            group.unreadable.append(str(error))
    if spectra:
        power_NF = np.stack(spectra)
        known = np.isfinite(power_NF).any(axis=0)
        group.quartiles_3F = np.full((3, power_NF.shape[1]), np.nan)
        with np.errstate(all="ignore"):
            group.quartiles_3F[:, known] = np.nanpercentile(power_NF[:, known], [25, 50, 75], axis=0)
    group.n_spectra = len(spectra)
    for recording in chosen[:: max(len(chosen) // _EXAMPLES, 1)][:_EXAMPLES]:
        with suppress(ValueError):  # told above
            group.examples.append(_middle(corpus, place, recording, _EXAMPLE_SECONDS[group.modality]))


def _middle(corpus: Corpus, place: Location, recording: Recording, seconds: float) -> Window:
    """The middle of the longest valid span, at most ``seconds`` of it."""
    spans = np.asarray(recording.valid_spans).reshape(-1, 2)
    start, stop = spans[np.argmax(spans[:, 1] - spans[:, 0])]
    length = min(int(stop - start), max(round(seconds * recording.sfreq), 1))
    start = int(start + (stop - start - length) // 2)
    return corpus.read_window(recording, start, length) if is_local(place) else _fetch(place, recording, start, length)


def _fetch(place: Location, r: Recording, start: int, length: int) -> Window:
    """A window by its range of bytes; raise ``ValueError`` where it cannot be read. Checksums are the linter's work."""
    shard, dtype = place / SHARDS_NAME / r.shard, np.dtype(r.dtype).newbyteorder("<")
    row_bytes = r.n_channels * dtype.itemsize
    try:
        content = read_range(shard, r.byte_offset + start * row_bytes, length * row_bytes)
    except OSError as error:
        raise ValueError(f"{shard}: cannot read the shard ({error})") from None
    if len(content) != length * row_bytes:
        raise ValueError(f"{shard}: truncated inside {r.member}")
    x_TC = np.frombuffer(content, dtype).reshape(length, r.n_channels).astype(np.float32) * np.float32(r.scale)
    return Window(x_TC, r, start)


def _power(window: Window) -> np.ndarray:
    """Median over the good channels of Welch's power [unit²/Hz] at FREQUENCIES, NaN beyond what the window resolves."""
    recording = window.recording
    x_CT = window.x_TC[:, np.asarray(recording.channel_good)].T.astype(np.float64)
    length = min(x_CT.shape[1], max(round(_WELCH_SECONDS[recording.modality] * recording.sfreq), 8))
    frequencies, power_CF = welch(x_CT, recording.sfreq, nperseg=length, detrend="linear")
    wanted = FREQUENCIES[recording.modality]
    return np.interp(wanted, frequencies, np.median(power_CF, axis=0), left=np.nan, right=np.nan)
