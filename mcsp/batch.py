"""Batches of windows as tensors, for any mixture of montages, sampling rates and missing modalities.

Each modality holds only the rows that have it; ``sample_B`` says which sample of the batch each row belongs to.
Padding is zero and masked; no result may depend on it.

Shape letters: N samples of the batch, B rows of one modality, C channels, T time samples.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from mcsp.schema import MAD_TO_SD, MODALITIES, SCALE_FREE, UNITS, Modality, Window, text_key

# A value so many robust deviations from its channel's median is an artefact of storage or of a device, not of a brain.
MOST_DEVIATIONS = 1e4
# Largest robust deviation of a window that can be in its unit: EEG as EegConfig.max_amplitude_uv, where channels have 5
# to 50 uV; percent signal change, of which parcels have about 1. Ours.
LOUDEST: dict[str, float] = {UNITS["eeg"]: 5000.0, UNITS["fmri"]: 100.0}
_LOOKED_AT = 256  # time samples that robust statistics of a window are taken from


@dataclass(frozen=True)
class Signal:
    """The windows of one modality in a batch."""

    x_BCT: Tensor  # float32, uV or percent, of deviation 1 where the unit is a.u.; zero where not valid
    sfreq_B: Tensor  # float32 Hz; of a batch on a GPU still on the host, as shapes follow from it
    channel_valid_BC: Tensor  # bool
    time_valid_BT: Tensor  # bool
    position_BC3: Tensor  # float32 mm; zero where unknown
    position_valid_BC: Tensor  # bool; False where the position is unknown (implies nothing about the channel)
    sample_B: Tensor  # int64, row -> sample of the batch
    key_B: Tensor  # int64, randomness key of the row's sample

    def __len__(self) -> int:
        return self.x_BCT.shape[0]

    @property
    def row_valid_B(self) -> Tensor:
        """Whether a row holds anything: some valid channel at some valid time, bool ``(B,)``."""
        return self.channel_valid_BC.any(1) & self.time_valid_BT.any(1)

    def __reduce__(self) -> tuple[Any, ...]:
        """Between processes only the windows go through shared memory: each tensor there costs a handshake."""
        small = {f.name: getattr(self, f.name).numpy() for f in fields(self) if f.name != "x_BCT"}
        return _signal, (self.x_BCT, small)

    def to(self, device: torch.device | str) -> "Signal":
        """Copy every tensor but the rates to ``device``."""
        moved = [f.name for f in fields(self) if f.name != "sfreq_B"]
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=True) for name in moved})

    def replace(self, **changes: Tensor) -> "Signal":
        """A copy with some tensors replaced."""
        return replace(self, **changes)


def as_one(signals: Sequence[Signal], **instead: Tensor) -> Signal:
    """The rows of signals of one shape, one signal after the other; tensors that are named in place of theirs."""
    names = [f.name for f in fields(Signal)]
    joined = {name: torch.cat([getattr(signal, name) for signal in signals]) for name in names if name not in instead}
    return Signal(**joined, **instead)


def rows_of(signal: Signal, rows: Tensor | slice | list[int]) -> Signal:
    """Some rows of a signal."""
    return Signal(**{f.name: getattr(signal, f.name)[rows] for f in fields(Signal)})


def _signal(x_BCT: Tensor, small: dict[str, np.ndarray]) -> Signal:
    return Signal(x_BCT, **{name: torch.from_numpy(array) for name, array in small.items()})


@dataclass(frozen=True)
class Batch:
    """N samples; a modality that no sample has is absent from ``signals``."""

    signals: dict[Modality, Signal]
    subject_N: Tensor  # int64; equal where the subject is
    site_N: Tensor  # int64; equal where the site is
    keys: tuple[str, ...]  # sample keys, length N
    unreadable: tuple[str, ...] = ()  # what other windows stand in for: one line per window that could not be read
    left_out: Mapping[str, int] = field(default_factory=dict)  # site -> windows whose rows are not valid
    read_seconds: Mapping[str, float] = field(default_factory=dict)  # stream -> time that reading its windows took
    real_share: Mapping[str, float] = field(default_factory=dict)  # modality -> share of values that are not padding

    def __len__(self) -> int:
        return len(self.keys)

    def __reduce__(self) -> tuple[Any, ...]:
        """As of a signal."""
        rest = self.keys, self.unreadable, self.left_out, self.read_seconds, self.real_share
        return _batch, (self.signals, self.subject_N.numpy(), self.site_N.numpy(), *rest)

    def to(self, device: torch.device | str) -> "Batch":
        """Copy every tensor to ``device``."""
        signals = {modality: signal.to(device) for modality, signal in self.signals.items()}
        return replace(self, signals=signals, subject_N=self.subject_N.to(device), site_N=self.site_N.to(device))

    def pin_memory(self) -> "Batch":
        """Page-locked copy; the hook that ``torch.utils.data.DataLoader(pin_memory=True)`` calls."""
        signals = {
            m: replace(s, **{f.name: getattr(s, f.name).pin_memory() for f in fields(s)})
            for m, s in self.signals.items()
        }
        subject_N, site_N = self.subject_N.pin_memory(), self.site_N.pin_memory()
        return replace(self, signals=signals, subject_N=subject_N, site_N=site_N)


def _batch(signals: dict[Modality, Signal], subject_N: np.ndarray, site_N: np.ndarray, *rest: Any) -> Batch:
    return Batch(signals, torch.from_numpy(subject_N), torch.from_numpy(site_N), *rest)


def valid_times(window: Window) -> np.ndarray:
    """Which time samples of a window lie in the recording's valid spans, bool ``(T,)``; all where it names none."""
    spans = window.recording.valid_spans or [0, window.recording.n_samples]
    valid_T = np.zeros(len(window.x_TC), dtype=bool)
    for first, stop in zip(spans[::2], spans[1::2], strict=True):
        valid_T[max(first - window.start, 0) : max(stop - window.start, 0)] = True
    return valid_T


def deviations(x_CT: Tensor, good_C: np.ndarray, valid_T: np.ndarray) -> tuple[float, float]:
    """Robust deviation of a window, and the largest distance of a value from its channel's median.

    Median over good channels of the median absolute deviation, as a standard deviation, from 256 valid time samples at
    most; where that is zero, of their standard deviation. 0 and 0 where the window is flat or nothing is valid.

    Args:
        x_CT: zero where a channel is bad or time is not valid.
        good_C, valid_T: bool.
    """
    at_T = np.flatnonzero(valid_T)
    if not len(at_T) or not good_C.any():
        return 0.0, 0.0
    good = torch.from_numpy(good_C)
    some_CT = x_CT[:, torch.from_numpy(at_T[:: -(-len(at_T) // _LOOKED_AT)])][good]
    middle_C1 = some_CT.median(dim=1, keepdim=True).values
    deviation = float((some_CT - middle_C1).abs().median(dim=1).values.median()) * MAD_TO_SD
    low_C, high_C = x_CT.aminmax(dim=1)
    furthest = float(torch.maximum(high_C[good] - middle_C1[:, 0], middle_C1[:, 0] - low_C[good]).max())
    if float((some_CT.amax(1) - some_CT.amin(1)).max()) == 0.0:
        return 0.0, 0.0
    return deviation or float(some_CT.std(dim=1, correction=0).max()), furthest


def _zeros(*shape: int) -> Tensor:
    """Float32 zeros; in a loader's worker in memory that the training process shares, where they must be in the end."""
    if get_worker_info() is None:
        return torch.from_numpy(np.zeros(shape, np.float32))  # fresh memory is zero; torch.zeros would write it
    # As torch's own collation does it; fresh shared memory is zero.
    storage = torch.UntypedStorage._new_shared(4 * math.prod(shape), device="cpu")
    shared = torch.empty(0)
    return shared.set_(storage, 0, (math.prod(shape),), (1,)).view(shape)


def collate_signal(windows: Sequence[Window], sample_indices: Sequence[int], sample_keys: Sequence[int]) -> Signal:
    """Pad windows of one modality into one :class:`Signal`.

    ``sample_indices`` and ``sample_keys`` (63-bit integers) have one entry per window. Channels marked bad in the
    recording, channels with values that are not finite, and time outside the recording's valid spans are masked. So is
    a whole row (its :attr:`Signal.row_valid_B` is False) that is flat, has a value ``MOST_DEVIATIONS`` robust
    deviations away, or is louder than ``LOUDEST`` allows in its unit: it keeps its place, and takes part in nothing. A
    row in a.u. is divided by its robust deviation, as its amplitude means nothing.
    """
    n_channels, n_samples = (max(w.x_TC.shape[axis] for w in windows) for axis in (1, 0))
    rows = len(windows)
    x_BCT = _zeros(rows, n_channels, n_samples)
    scratch = torch.empty(max(w.x_TC.size for w in windows))  # fresh memory for each would cost more than the work
    channel_valid = np.zeros((rows, n_channels), dtype=bool)
    time_valid = np.zeros((rows, n_samples), dtype=bool)
    position = np.zeros((rows, n_channels, 3), dtype=np.float32)
    position_valid = np.zeros((rows, n_channels), dtype=bool)
    for b, window in enumerate(windows):
        t, c = window.x_TC.shape
        # torch converts float16 20 times as fast as numpy does, and transposes while it copies.
        x_TC = scratch[: t * c].view(t, c).copy_(torch.from_numpy(window.x_TC))
        if window.scale != 1.0:
            x_TC.mul_(window.scale)
        good_C = np.array(window.recording.channel_good, dtype=bool)
        if not bool(torch.isfinite(x_TC.sum())):  # a cheap pass: a sum is finite only if all of its terms are
            good_C &= torch.isfinite(x_TC).all(dim=0).numpy()
        valid_T = valid_times(window)
        row_CT = x_BCT[b, :c, :t]
        row_CT.copy_(x_TC.T)
        if not good_C.all():
            row_CT[torch.from_numpy(~good_C)] = 0.0
        if not valid_T.all():
            row_CT[:, torch.from_numpy(~valid_T)] = 0.0
        deviation, furthest = deviations(row_CT, good_C, valid_T)
        unit = window.recording.unit
        if deviation == 0.0 or furthest > MOST_DEVIATIONS * deviation or deviation > LOUDEST.get(unit, math.inf):
            row_CT.zero_()
            good_C[:], valid_T[:] = False, False
        elif unit == SCALE_FREE:
            row_CT.div_(deviation)
        channel_valid[b, :c] = good_C
        time_valid[b, :t] = valid_T
        known_C = np.isfinite(window.recording.positions_C3).all(axis=1)
        position[b, :c] = np.where(known_C[:, None], window.recording.positions_C3, 0.0)
        position_valid[b, :c] = known_C & good_C
    return Signal(
        x_BCT=x_BCT,
        sfreq_B=torch.tensor([w.recording.sfreq for w in windows], dtype=torch.float32),
        channel_valid_BC=torch.from_numpy(channel_valid),
        time_valid_BT=torch.from_numpy(time_valid),
        position_BC3=torch.from_numpy(position),
        position_valid_BC=torch.from_numpy(position_valid),
        sample_B=torch.tensor(list(sample_indices), dtype=torch.int64),
        key_B=torch.tensor(list(sample_keys), dtype=torch.int64),
    )


def collate(samples: Sequence[Sequence[Window]], keys: Sequence[int] | None = None) -> Batch:
    """Pad and stack samples into a batch.

    Args:
        samples: for each of N samples its windows (at most one per modality).
        keys: N randomness keys (63-bit); 0 where omitted, which is right when nothing random follows.

    Raises:
        ValueError: an empty batch, a sample without windows, or two windows of one modality in a sample.
    """
    if not samples or any(not windows for windows in samples):
        raise ValueError(f"collate: expected samples with at least one window each, found {[len(s) for s in samples]}")
    keys = keys if keys is not None else [0] * len(samples)
    signals: dict[Modality, Signal] = {}
    real_share: dict[str, float] = {}
    for modality in MODALITIES:
        rows = [(i, w) for i, windows in enumerate(samples) for w in windows if w.recording.modality == modality]
        if len({i for i, _ in rows}) < len(rows):
            raise ValueError(f"collate: a sample has two {modality} windows, at most one is expected")
        if rows:
            indices = [i for i, _ in rows]
            signals[modality] = collate_signal([w for _, w in rows], indices, [keys[i] for i in indices])
            real_share[modality] = sum(w.x_TC.size for _, w in rows) / signals[modality].x_BCT.numel()
    left_out = Counter(
        samples[i][0].recording.site
        for signal in signals.values()
        for i in signal.sample_B[~signal.row_valid_B].tolist()
    )
    first = [windows[0].recording for windows in samples]
    return Batch(
        signals=signals,
        subject_N=torch.tensor([text_key(f"{r.site}/{r.subject}") for r in first], dtype=torch.int64),
        site_N=torch.tensor([text_key(r.site) for r in first], dtype=torch.int64),
        keys=tuple(r.key for r in first),
        left_out=dict(sorted(left_out.items())),
        real_share=real_share,
    )
