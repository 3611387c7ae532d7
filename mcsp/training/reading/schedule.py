"""What each step reads: a pure function of (index hash, seed, step), whatever the ranks and workers.

Samples fall into streams: those with both modalities and those with one. Each step takes a fixed quota of every
stream. Samples of a step are put in order of their shape (channels, time samples) and cut into as many buckets as ranks
have micro-batches, so that few values of a batch are padding; every bucket takes as much of each quota, so that all
ranks have the same composition and touch the same parameters. Bucket b is micro-batch b div ranks of rank b mod ranks:
micro-batches that ranks compute at the same time are of about the same shape. How many buckets there are changes who
reads a sample, and nothing of what is read. The data state of a run is one integer, the step.

What "once per pass" means: position p of a stream is place p mod n of its cycle p div n. With ``site_temperature`` 1
every sample of the stream is read exactly once in each cycle; otherwise every sample of a site once in each pass over
that site (:class:`mcsp.training.reading.order.Order`; where a step draws from few sites,
:class:`mcsp.training.reading.order.SiteBatches`). Each time a sample is read its windows are cut anew, and the next of
its recordings is taken, or the next of its pairs of recordings; after as many passes as it has of these, all were read.
Windows lie where :mod:`mcsp.windows` allows them, aligned in time where clocks are shared.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mcsp.config import BatchConfig
from mcsp.data_sharding.store.table import Recordings
from mcsp.schema import MODALITIES, Modality, Purpose, Recording, Split, random_key, text_key, unit_interval
from mcsp.training.reading.order import Order, SiteBatches
from mcsp.windows import LEAST_VALID_SHARE, common_instants, random_start, start_ranges, window_samples, window_start

Seconds = Mapping[Modality, float]


@dataclass(frozen=True)
class Cut:
    """A window to read."""

    recording: Recording
    start: int
    n_samples: int


def pairings(
    eeg: Sequence[Recording], fmri: Sequence[Recording], window_seconds: Seconds, delay_seconds: float
) -> list[tuple[Recording, Recording]]:
    """The pairs of recordings that a sample with both modalities is read as, one per pass, in turn.

    All pairs with simultaneous windows; recordings that are in none of them are joined one by one. So every recording
    is in at least one pair.
    """
    pairs = [(e, f) for e in eeg for f in fmri if common_instants(e, f, window_seconds, delay_seconds)]
    used = {r.member for pair in pairs for r in pair}
    lone_eeg, lone_fmri = ([r for r in rs if r.member not in used] for rs in (eeg, fmri))
    rest = max(len(lone_eeg), len(lone_fmri))
    lone_eeg, lone_fmri = lone_eeg or list(eeg), lone_fmri or list(fmri)
    return pairs + [(lone_eeg[i % len(lone_eeg)], lone_fmri[i % len(lone_fmri)]) for i in range(rest)]


def cut_one(recording: Recording, window_seconds: Seconds, key: int) -> Cut:
    """A window at a random place, every start that :mod:`mcsp.windows` allows with the same probability.

    Raises:
        ValueError: a recording without a window.
    """
    n_samples = window_samples(recording, window_seconds[recording.modality])
    return Cut(recording, random_start(recording, n_samples, unit_interval(key)), n_samples)


def cut_pair(
    eeg: Recording, fmri: Recording, window_seconds: Seconds, delay_seconds: float, key: int
) -> tuple[Cut, Cut]:
    """A window of each: simultaneous, the BOLD one ``delay_seconds`` later, where the recordings share a clock.

    The instant is drawn uniformly from those at which :mod:`mcsp.windows` allows both windows; where there are none,
    each is cut by itself.

    Raises:
        ValueError: a recording without a window.
    """
    instants = common_instants(eeg, fmri, window_seconds, delay_seconds)
    if not instants:
        first_key, second_key = (random_key(key, p) for p in (Purpose.FIRST_WINDOW, Purpose.SECOND_WINDOW))
        return cut_one(eeg, window_seconds, first_key), cut_one(fmri, window_seconds, second_key)
    instant = _instant(instants, unit_interval(random_key(key, Purpose.FIRST_WINDOW)))

    def at(r: Recording, clock_seconds: float) -> Cut:
        seconds = window_seconds[r.modality]
        return Cut(r, window_start(r, clock_seconds, seconds), window_samples(r, seconds))

    return at(eeg, instant), at(fmri, instant + delay_seconds)


def _instant(ranges: Sequence[tuple[float, float]], draw: float) -> float:
    """A point of the union of disjoint ranges, by a uniform draw in [0, 1)."""
    total = sum(b - a for a, b in ranges)
    if total == 0:
        return ranges[int(draw * len(ranges))][0]
    place = draw * total
    for a, b in ranges:
        if place <= b - a:
            return a + place
        place -= b - a
    return ranges[-1][1]


STREAMS = ("paired", "eeg", "fmri")
_MOST_IN_ORDER = 4096  # positions of a step that a rank looks up to find its own; more are cut among groups of ranks


@dataclass(frozen=True)
class Stream:
    """Samples of one composition."""

    name: str
    quota: int  # samples per global batch
    rows_N2: np.ndarray  # first row of each sample and one past its last, int32
    order: Order | SiteBatches
    shape_N: np.ndarray  # number of each sample's shape, in the order of shapes, int32

    def __len__(self) -> int:
        return len(self.rows_N2)


@dataclass(frozen=True)
class Draw:
    """One sample of a global batch: its windows and its randomness key."""

    stream: int
    position: int  # in the stream, over all steps
    attempt: int  # 0, or how many unreadable samples came before
    cuts: tuple[Cut, ...]
    key: int  # 63 bits


class Schedule:
    """Random access to the global batches of a run.

    It holds a few integers per row of the table; recordings are made from the table when they are drawn.
    """

    def __init__(
        self,
        recordings: Recordings,
        *,
        index_hash: str,
        seed: int,
        quota: BatchConfig,
        window_seconds: dict[Modality, float],
        delay_seconds: float,
        site_temperature: float = 1.0,
        shuffle_shards: int = 0,
        sites_per_batch: int = 0,
        split: Split = "train",
    ) -> None:
        """Sort the samples of a split into streams.

        Args:
            recordings: the table of a corpus.
            index_hash: of the corpus; with ``seed`` it decides every draw.
            seed: any integer.
            quota: samples of each stream per step.
            window_seconds: length of a window per modality; recordings of others, shorter ones, and those without a
                window of enough valid time (:mod:`mcsp.windows`) are left out. ``left_out`` counts the last by site.
            delay_seconds: how much later the BOLD window of a simultaneous pair starts.
            site_temperature: 1 reads every sample equally often, infinity every site.
            shuffle_shards: samples are shuffled within groups of so many shards, group after group; 0: all together.
            sites_per_batch: from how many sites a stream's samples of one step come; 0: from all, mixed.
            split: which people. Of another than ``train`` streams without samples are left out.

        Raises:
            ValueError: a stream with a quota but without samples whose recordings are long enough, no quota at all, or
                a quota that ``sites_per_batch`` does not divide.
        """
        self.recordings, self.window_seconds, self.delay_seconds = recordings, window_seconds, delay_seconds
        self.split, self.key = split, random_key(text_key(index_hash), seed)
        codes, names = recordings.codes("modality")
        self._modalities = codes.astype(np.uint8), names
        self._lengths = self._window_lengths()
        self.left_out = self._leave_out_invalid()
        starts = recordings.sample_starts()
        stream_N = self._stream_of_samples(starts)
        self.streams: list[Stream] = []
        for name in STREAMS:
            numbers, n = np.flatnonzero(stream_N == STREAMS.index(name)), getattr(quota, name)
            if n and not len(numbers) and split == "train":
                have = {name: int((stream_N == i).sum()) for i, name in enumerate(STREAMS)}
                raise ValueError(
                    f"batch.{name}={n}, but the training split has no such sample with recordings of at least "
                    f"{window_seconds} s, half of it valid; found {have}. Set batch.{name}=0 or shorten window_seconds"
                )
            if n and len(numbers):
                rows_N2 = np.stack([starts[numbers], starts[numbers + 1]], axis=1).astype(np.int32)
                order = self._order(name, n, rows_N2[:, 0], site_temperature, shuffle_shards, sites_per_batch)
                self.streams.append(Stream(name, n, rows_N2, order, self._shape_numbers(rows_N2)))
        if not self.streams and split == "train":
            raise ValueError("batch: expected a quota above 0 for paired, eeg or fmri, found none")
        drawn = np.isin(stream_N, [STREAMS.index(stream.name) for stream in self.streams])
        self.mean_shapes = self._mean_shapes(np.repeat(drawn, np.diff(starts)))
        self._in_order: dict[tuple[int, int, int], Sequence[int]] = {}  # positions that were put in order lately

    def _window_lengths(self) -> np.ndarray:
        """Length of a window of each row in its own time samples, int32; 0 where the row is of no use."""
        codes, names = self._modalities
        seconds_of: dict[str, float] = dict(self.window_seconds.items())
        seconds = np.array([seconds_of.get(name, np.nan) for name in names] or [np.nan])[codes]
        lengths = np.maximum(1, np.rint(seconds * self.recordings.column("sfreq")))
        usable = lengths <= self.recordings.column("n_samples")  # false for NaN
        return np.where(usable, lengths, 0).astype(np.int32)

    def _leave_out_invalid(self) -> dict[str, int]:
        """Make rows of the split useless that have no window of enough valid time; their number by site."""
        edges, starts = self.recordings.flat("valid_spans")
        inside = (self._lengths > 0) & self.recordings.rows_of("split", self.split)
        # A row of which one span is long enough has a window; few rows are left to be looked at one by one.
        spans = np.diff(edges, append=0)
        spans[1::2] = 0  # gaps: each row has an even number of edges
        longest = np.maximum.reduceat(np.append(spans, 0), starts[:-1]) if len(starts) > 1 else spans
        doubtful = inside & (starts[1:] > starts[:-1]) & (longest < LEAST_VALID_SHARE * self._lengths)
        left_out: Counter[str] = Counter()
        for row in np.flatnonzero(doubtful).tolist():
            recording = self.recordings[row]
            if not start_ranges(recording, int(self._lengths[row])):
                self._lengths[row] = 0
                left_out[recording.site] += 1
        return dict(sorted(left_out.items()))

    def _stream_of_samples(self, starts: np.ndarray) -> np.ndarray:
        """Index into STREAMS of each sample, or -1: another split, or nothing long enough."""
        codes, names = self._modalities
        has = {m: np.zeros(len(starts) - 1, dtype=bool) for m in MODALITIES}
        for m in (m for m in MODALITIES if m in names):
            has[m] = np.logical_or.reduceat((codes == names.index(m)) & (self._lengths > 0), starts[:-1])
        inside = self.recordings.rows_of("split", self.split)[starts[:-1]]
        kinds = [has["eeg"] & has["fmri"], has["eeg"], has["fmri"]]
        return np.where(inside, np.select(kinds, range(len(STREAMS)), -1), -1)

    def _cells(self, first_rows_N: np.ndarray, shuffle_shards: int) -> tuple[np.ndarray, np.ndarray]:
        """Site and group of shards of each sample, as integers that do not depend on how the table is coded."""
        (sites, site_names), (shards, shard_names) = self.recordings.codes("site"), self.recordings.codes("shard")
        site_rank, shard_rank = (np.argsort(np.argsort(np.array(names))) for names in (site_names, shard_names))
        group_N = shard_rank[shards[first_rows_N]] // shuffle_shards if shuffle_shards else np.zeros_like(first_rows_N)
        return site_rank[sites[first_rows_N]], group_N

    def _order(
        self, name: str, n: int, first_rows_N: np.ndarray, temperature: float, shuffle_shards: int, sites: int
    ) -> Order | SiteBatches:
        """In which order a stream's samples are read, ``n`` a step, from so many ``sites`` (0: all, mixed)."""
        key = random_key(self.key, Purpose.ORDER, STREAMS.index(name))
        site_N, group_N = self._cells(first_rows_N, shuffle_shards)
        if not sites:
            return Order(site_N, group_N, temperature, key, n)
        if n % sites:
            raise ValueError(f"sites_per_batch={sites}: expected a divisor of batch.{name}={n}")
        return SiteBatches(site_N, group_N, temperature, key, n, sites)

    def _shape_numbers(self, rows_N2: np.ndarray) -> np.ndarray:
        """Number of each sample's shape: channels and time samples of a window, the most of its recordings."""
        codes, names = self._modalities
        shape_N4 = np.zeros((len(rows_N2), 2 * len(MODALITIES)), dtype=np.int32)
        edges = rows_N2.ravel()
        last = edges[-1:] == len(codes)  # reduceat takes no edge behind the last row
        for m, modality in enumerate(MODALITIES):
            inside = (self._lengths > 0) & (codes == (names.index(modality) if modality in names else -1))
            for i, values in enumerate((self.recordings.column("n_channels"), self._lengths)):
                most = np.maximum.reduceat(np.where(inside, values, 0), edges[:-1] if last.all() else edges)
                shape_N4[:, 2 * m + i] = most[::2]
        return np.unique(shape_N4, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int32)

    def _mean_shapes(self, drawn: np.ndarray) -> dict[Modality, tuple[int, int]]:
        """Channels and time samples of a window, means of the recordings that the run reads: without padding."""
        codes, names = self._modalities
        channels, shapes = self.recordings.column("n_channels"), {}
        for modality in MODALITIES:
            inside = drawn & (self._lengths > 0) & (codes == (names.index(modality) if modality in names else -1))
            if inside.any():
                shapes[modality] = (round(float(channels[inside].mean())), round(float(self._lengths[inside].mean())))
        return shapes

    @property
    def global_batch(self) -> int:
        """Samples per step over all ranks."""
        return sum(stream.quota for stream in self.streams)

    def check_shares(self, world_size: int, micro_batches: int) -> None:
        """Raise ``ValueError`` with the legal numbers unless every quota divides evenly among ranks and passes."""
        quotas = {stream.name: stream.quota for stream in self.streams}
        shares = world_size * micro_batches
        if any(q % shares for q in quotas.values()):
            legal = [n for n in range(1, max(quotas.values()) + 1) if not any(q % n for q in quotas.values())]
            worlds = [n // micro_batches for n in legal if n % micro_batches == 0]
            raise ValueError(
                f"{world_size} ranks x {micro_batches} micro_batches cannot share the batch {quotas} evenly; "
                f"legal numbers of ranks with micro_batches={micro_batches}: {worlds}, legal products: {legal}"
            )

    def draws(
        self, step: int, rank: int = 0, world_size: int = 1, micro_batch: int = 0, micro_batches: int = 1
    ) -> Iterator[Draw]:
        """The draws of one micro-batch of one rank in one step: its bucket of every stream, in order of shape."""
        for number, stream in enumerate(self.streams):
            groups = next(
                g for g in range(1, world_size + 1)
                if world_size % g == 0 and (stream.quota <= g * _MOST_IN_ORDER or g == world_size)
            )  # fmt: skip
            ranks, quota = world_size // groups, stream.quota // groups
            group, own = divmod(rank, ranks)
            positions = self._by_shape(number, step * stream.quota + group * quota, quota)
            share, bucket = quota // (ranks * micro_batches), micro_batch * ranks + own
            for position in positions[bucket * share : (bucket + 1) * share]:
                yield self.draw(number, position)

    def _by_shape(self, number: int, first: int, count: int) -> Sequence[int]:
        """The positions of a stream from ``first`` on, in order of shape, then of position."""
        stream = self.streams[number]
        if not stream.shape_N.any():  # all of one shape
            return range(first, first + count)
        key = (number, first, count)
        if key not in self._in_order:
            if len(self._in_order) >= 64:
                self._in_order.clear()
            shapes = [int(stream.shape_N[stream.order(position)[0]]) for position in range(first, first + count)]
            self._in_order[key] = [first + i for i in sorted(range(count), key=shapes.__getitem__)]
        return self._in_order[key]

    def draw(self, number: int, position: int, attempt: int = 0) -> Draw:
        """What a position of a stream reads; with ``attempt`` k > 0, what stands in where k samples could not be read.

        Which one is the order's business.
        """
        stream = self.streams[number]
        sample, pass_ = stream.order(position, attempt)
        first, stop = stream.rows_N2[sample].tolist()
        key = random_key(self.key, Purpose.SAMPLE, STREAMS.index(stream.name), position, attempt)
        turn = pass_ + (random_key(self.key, Purpose.TURN, first) >> 32)
        cuts = self._cuts(range(first, stop), turn, random_key(key, Purpose.CUT))
        return Draw(number, position, attempt, cuts, key >> 1)

    def _cuts(self, rows: range, turn: int, key: int) -> tuple[Cut, ...]:
        codes, names = self._modalities
        rows_of: dict[str, list[int]] = {"eeg": [], "fmri": []}
        for row in rows:
            if self._lengths[row]:
                rows_of[names[codes[row]]].append(row)
        if rows_of["eeg"] and rows_of["fmri"]:
            eeg, fmri = ([self.recordings[row] for row in rows_of[m]] for m in ("eeg", "fmri"))
            pairs = pairings(eeg, fmri, self.window_seconds, self.delay_seconds)
            return cut_pair(*pairs[turn % len(pairs)], self.window_seconds, self.delay_seconds, key)
        usable = rows_of["eeg"] or rows_of["fmri"]
        return (cut_one(self.recordings[usable[turn % len(usable)]], self.window_seconds, key),)
