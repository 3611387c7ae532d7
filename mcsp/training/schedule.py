"""What each step reads: a pure function of (index hash, seed, step), whatever the ranks and workers.

Samples fall into streams: those with both modalities and those with one. Each step takes a fixed quota of every
stream; rank r takes the r-th slice of every quota, so all ranks have the same composition and touch the same
parameters. The data state of a run is one integer, the step.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mcsp.config import BatchConfig
from mcsp.schema import (
    Modality,
    Recording,
    common_starts,
    mix64,
    random_key,
    text_key,
    unit_interval,
    window_samples,
    window_start,
)


class Permutation:
    """A keyed permutation of range(n) with random access and no memory: a Feistel network with cycle walking
    (Black and Rogaway, CT-RSA 2002)."""

    ROUNDS = 6

    def __init__(self, n: int, key: int) -> None:
        self.n, self.key = n, key
        self.half_bits = max(1, ((n - 1).bit_length() + 1) // 2)

    def __call__(self, index: int) -> int:
        """The image of ``index``."""
        mask = (1 << self.half_bits) - 1
        while True:
            left, right = index >> self.half_bits, index & mask
            for round_ in range(self.ROUNDS):
                left, right = right, left ^ (mix64(self.key ^ (right << 8 | round_)) & mask)
            index = left << self.half_bits | right
            if index < self.n:
                return index


@dataclass(frozen=True)
class Stream:
    """Samples of one composition, sorted by key."""

    name: str  # "paired" | "eeg" | "fmri"
    samples: tuple[tuple[Recording, ...], ...]
    quota: int  # per global batch


@dataclass(frozen=True)
class Cut:
    """A window to read."""

    recording: Recording
    start: int
    n_samples: int


@dataclass(frozen=True)
class Draw:
    """One sample of a global batch: its windows and its randomness key."""

    cuts: tuple[Cut, ...]
    key: int  # 63 bits


class Schedule:
    """Random access to the global batches of a run."""

    def __init__(
        self,
        samples: Mapping[str, list[Recording]],
        *,
        index_hash: str,
        seed: int,
        quota: BatchConfig,
        window_seconds: dict[Modality, float],
        delay_seconds: float,
    ) -> None:
        """Sort samples into streams.

        Raises:
            ValueError: a stream with a quota but without samples whose recordings are long enough, or no quota at all.
        """
        self.key = random_key(text_key(index_hash), seed)
        self.window_seconds, self.delay_seconds = window_seconds, delay_seconds
        usable = {key: [r for r in recordings if self._long_enough(r)] for key, recordings in sorted(samples.items())}
        groups: dict[str, list[tuple[Recording, ...]]] = {"paired": [], "eeg": [], "fmri": []}
        for recordings in usable.values():
            modalities = sorted({r.modality for r in recordings})
            if modalities:
                groups["paired" if len(modalities) == 2 else modalities[0]].append(tuple(recordings))
        self.streams = [Stream(n, tuple(groups[n]), getattr(quota, n)) for n in groups if getattr(quota, n)]
        if not self.streams:
            raise ValueError("batch: expected a quota above 0 for paired, eeg or fmri, found none")
        for stream in self.streams:
            if not stream.samples:
                have = {name: len(group) for name, group in groups.items()}
                raise ValueError(
                    f"batch.{stream.name}={stream.quota}, but the training split has no such sample with recordings of "
                    f"at least {window_seconds} s; found {have}. Set batch.{stream.name}=0 or shorten window_seconds"
                )

    @property
    def global_batch(self) -> int:
        """Samples per step over all ranks."""
        return sum(stream.quota for stream in self.streams)

    def check_shares(self, world_size: int, micro_batches: int) -> None:
        """Raise ``ValueError`` with the legal products unless every quota divides evenly among ranks and passes."""
        quotas = {stream.name: stream.quota for stream in self.streams}
        shares = world_size * micro_batches
        if any(q % shares for q in quotas.values()):
            legal = [n for n in range(1, max(quotas.values()) + 1) if not any(q % n for q in quotas.values())]
            raise ValueError(
                f"{world_size} ranks x {micro_batches} micro_batches cannot share the batch {quotas} evenly; "
                f"legal products: {legal}"
            )

    def draws(self, step: int, rank: int = 0, world_size: int = 1) -> Iterator[Draw]:
        """The draws of one rank in one step: its slice of every stream, in order."""
        for number, stream in enumerate(self.streams):
            share = stream.quota // world_size
            for position in range(step * stream.quota + rank * share, step * stream.quota + (rank + 1) * share):
                yield self._draw(number, stream, position)

    def _draw(self, number: int, stream: Stream, position: int) -> Draw:
        pass_, index = divmod(position, len(stream.samples))
        recordings = stream.samples[Permutation(len(stream.samples), random_key(self.key, number, pass_))(index)]
        key = random_key(self.key, number, position, 1) >> 1
        return Draw(tuple(self._cut(recordings, key)), key)

    def _cut(self, recordings: tuple[Recording, ...], key: int) -> Iterator[Cut]:
        """One window per modality; aligned in time where the recordings share a clock."""
        chosen: dict[Modality, Recording] = {}
        for modality in ("eeg", "fmri"):
            candidates = [r for r in recordings if r.modality == modality]
            if candidates:
                chosen[modality] = candidates[int(unit_interval(random_key(key, 2)) * len(candidates))]
        draw = unit_interval(random_key(key, 3))
        paired = len(chosen) == 2
        together = (
            common_starts(chosen["eeg"], chosen["fmri"], self.window_seconds, self.delay_seconds) if paired else None
        )
        for number, (modality, recording) in enumerate(chosen.items()):
            length = self.samples_of(recording)
            if together is not None:
                instant = together[0] + draw * (together[1] - together[0])
                delay = self.delay_seconds if modality == "fmri" else 0.0
                start = window_start(recording, instant + delay, self.window_seconds[modality])
            else:
                start = int(unit_interval(random_key(key, 4, number)) * (recording.n_samples - length + 1))
            yield Cut(recording, start, length)

    def samples_of(self, recording: Recording) -> int:
        """Length of a window of this recording in its own time samples."""
        return window_samples(recording, self.window_seconds[recording.modality])

    def _long_enough(self, recording: Recording) -> bool:
        return recording.modality in self.window_seconds and recording.n_samples >= self.samples_of(recording)
