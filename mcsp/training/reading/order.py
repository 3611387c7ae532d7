"""Order of a stream of samples, as functions of integers with random access and without state."""

import functools
import itertools
import math
from itertools import accumulate, pairwise

import numpy as np

from mcsp.schema import Purpose, mix64, random_key


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


class Order:
    """Which sample each position of a stream reads.

    The samples of one site in one group of shards are a *cell*. A cycle of the stream gives every cell a fixed number
    of slots. At ``site_temperature`` 1 that is the number of its samples, so that a cycle is one pass over the stream.
    At T sites are drawn in proportion to size^(1/T) (Arivazhagan et al., arXiv 1907.05019), rounded to whole slots and
    at least one for each cell. Slots of a cell are numbered through all cycles, and number k * size to
    (k + 1) * size - 1 are its pass k, which reads each of its samples once.

    A cycle visits the groups one after the other in a keyed order, and the slots of a group in a keyed order.
    """

    def __init__(
        self,
        site_N: np.ndarray,
        group_N: np.ndarray,
        site_temperature: float,
        key: int,
        quota: int = 1,
        visit_key: int | None = None,
    ) -> None:
        """Lay out the cells.

        Args:
            site_N, group_N: integers of each of the stream's N > 0 samples, in the order of their numbers.
            site_temperature: T.
            key: decides the order.
            quota: positions of a step.
            visit_key: decides in which order groups are visited; default ``key``.
        """
        self.key, self.quota, self.visit_key = key, quota, key if visit_key is None else visit_key
        self._members = np.lexsort((site_N, group_N)).astype(np.int32)  # stable: by group, site, number
        site, group = site_N[self._members], group_N[self._members]
        first = np.flatnonzero(np.concatenate([[True], (np.diff(site) != 0) | (np.diff(group) != 0)]))
        self._first, self._size = first, np.diff(np.append(first, len(site)))
        self._slots = _slots(self._size, _weights(site_N, site_temperature)[site[first]])
        self._slot_ends = np.cumsum(self._slots)
        # Cells of group g are first_cell[g] to first_cell[g + 1] - 1; its slots end at group_ends[g].
        new_group = np.concatenate([[True], np.diff(group[first]) != 0])
        self._first_cell = np.flatnonzero(new_group)
        self._group_ends = self._slot_ends[np.append(self._first_cell[1:], len(first)) - 1]
        self._group_slots = np.diff(self._group_ends, prepend=0)
        self.length = int(self._slot_ends[-1])  # positions per cycle

    def __call__(self, position: int, attempt: int = 0) -> tuple[int, int]:
        """The sample that ``position`` reads and how many passes over its cell came before.

        With ``attempt`` k > 0, what stands in where k samples could not be read: what the same place of the next step
        reads, then the position after that, and so on through the cycle, which begins again at its end.
        """
        cycle, place = divmod(position, self.length)
        place = (place + (self.quota + attempt - 1 if attempt else 0)) % self.length
        groups, ends = self._visits(cycle)
        visit = int(np.searchsorted(ends, place, side="right"))
        group, place = int(groups[visit]), place - int(ends[visit - 1] if visit else 0)
        n_slots = int(self._group_slots[group])
        slot = int(self._group_ends[group]) - n_slots
        slot += Permutation(n_slots, random_key(self.key, Purpose.SLOT, cycle, group))(place)
        cell = int(np.searchsorted(self._slot_ends, slot, side="right"))
        slots, size = int(self._slots[cell]), int(self._size[cell])
        draw = cycle * slots + slot - int(self._slot_ends[cell]) + slots
        pass_, index = divmod(draw, size)
        if slots != size:
            # The slots of a cycle are in a new order already; where a pass is no cycle it needs an order of its own.
            index = Permutation(size, random_key(self.key, Purpose.MEMBER, pass_, cell))(index)
        return int(self._members[self._first[cell] + index]), pass_

    def _visits(self, cycle: int) -> tuple[np.ndarray, np.ndarray]:
        """The groups in the order of a cycle, and the place at which each ends."""
        n = len(self._first_cell)
        return _visits(self, cycle) if n > 1 else (np.zeros(1, dtype=np.int64), self._group_ends)


@functools.lru_cache(maxsize=256)
def _visits(order: Order, cycle: int) -> tuple[np.ndarray, np.ndarray]:
    groups = _permuted(len(order._first_cell), random_key(order.visit_key, Purpose.VISIT, cycle))
    return groups, np.cumsum(order._group_slots[groups])


class SiteBatches:
    """As :class:`Order`, for steps whose samples come from few sites, so that there are many of each.

    The quota of a step is cut into ``sites`` chunks of equal size, each of one site. A cycle is as many steps as the
    stream has sites. In it a site gets its share of the chunks, which is in proportion to size^(1/T), rounded down or
    up; what is rounded changes from cycle to cycle such that the shares come out exactly in the long run. The draws of
    a site are numbered in the order of the steps, without a gap through all cycles, and number k * size to
    (k + 1) * size - 1 are its pass k, which reads each of its samples once.

    * A step has ``sites`` different sites, unless some site has more than one in ``sites`` of the draws: that one then
      has several chunks in a step. So it is with fewer sites than asked for; each step then has all of them.
    * A site that is smaller than a chunk is read more than once in a step.
    * Groups of shards are visited one after the other in each pass over a site, in the same order by all sites.
    """

    TRIES = 16  # samples of one site in a row are unreadable mostly where the whole site is

    def __init__(
        self, site_N: np.ndarray, group_N: np.ndarray, site_temperature: float, key: int, quota: int, sites: int
    ) -> None:
        """As of :class:`Order`; ``sites`` divides ``quota``."""
        self.key, self.quota, self.sites, self.chunk = key, quota, sites, quota // sites
        by_site = np.argsort(site_N, kind="stable")
        found, first = np.unique(site_N[by_site], return_index=True)
        self._members = np.split(by_site.astype(np.int32), first[1:])
        site_keys = [random_key(key, Purpose.SITE, i) for i in range(len(self._members))]
        self._within = [
            Order(np.zeros_like(members), group_N[members], 1.0, site_key, self.chunk, visit_key=key)
            for members, site_key in zip(self._members, site_keys, strict=True)
        ]
        sizes = np.array([len(members) for members in self._members])
        slots: list[int] = _slots(sizes, _weights(site_N, site_temperature)[found]).tolist()
        self.cycle_steps, self._total = len(slots), sum(slots)
        # A site's chunks per cycle are whole + rest / total. Sites lie side by side on a line by their rests, and each
        # cycle gives one more to those that a comb of whole numbers falls on (systematic sampling, Madow 1949). The
        # comb moves by a stride without a common divisor with the total, near the golden ratio: evenly, in any stretch.
        shares = [self.cycle_steps * sites * s for s in slots]
        self._whole = [share // self._total for share in shares]
        self._edges = [0, *accumulate(share % self._total for share in shares)]
        self._offset = random_key(key, Purpose.OFFSET) % self._total
        stride = round(self._total * (math.sqrt(5) - 1) / 2)  # 1 at least
        self._stride = next(s for s in itertools.count(stride) if math.gcd(s, self._total) == 1)

    def __call__(self, position: int, attempt: int = 0) -> tuple[int, int]:
        """The sample that ``position`` reads and how many passes over its site came before.

        What stands in where samples could not be read comes from the same site, and after ``TRIES`` of these, or all
        that it has, from the site of the same place in the next step.
        """
        step, place = divmod(position, self.quota)
        cycle, step_of_cycle = divmod(step, self.cycle_steps)
        site_KS, number_KS = _chunks(self, cycle)
        chunk, inside = divmod(place, self.chunk)
        site = int(site_KS[step_of_cycle, chunk])
        within = self._within[site]
        tries = min(within.length, self.TRIES)
        if attempt > tries:
            return self(position + self.quota, attempt - tries)
        index, pass_ = within(int(number_KS[step_of_cycle, chunk]) * self.chunk + inside, attempt)
        return int(self._members[site][index]), pass_

    def chunks_before(self, cycle: int) -> list[int]:
        """How many chunks each site had in all cycles before this one."""
        sums = [floor_sum(cycle, self._total, self._stride, self._offset + edge) for edge in self._edges]
        return [cycle * whole + b - a for whole, (a, b) in zip(self._whole, pairwise(sums), strict=True)]


@functools.lru_cache(maxsize=8)
def _chunks(order: SiteBatches, cycle: int) -> tuple[np.ndarray, np.ndarray]:
    """The site of each chunk of a cycle and its number among the site's chunks, both ``(steps, sites)``.

    Sites lie one after the other on a line, in an order of this cycle, each as long as its number of chunks; a step
    takes the places that are whole cycles apart. So it meets no site twice that is not longer than a cycle
    (McNaughton's wrap-around rule, Management Science 6:1, 1959).
    """
    steps = order.cycle_steps
    before, after = (np.array(order.chunks_before(c)) for c in (cycle, cycle + 1))
    sites = _permuted(len(before), random_key(order.key, Purpose.SITES, cycle))
    line = np.repeat(sites, (after - before)[sites])
    step = np.tile(_permuted(steps, random_key(order.key, Purpose.STEPS, cycle)), order.sites)
    in_time = np.lexsort((step, line))
    count = after - before
    number = np.empty_like(line)
    number[in_time] = np.arange(len(line)) + np.repeat(before - (np.cumsum(count) - count), count)
    by_step = np.argsort(step, kind="stable")
    return line[by_step].reshape(steps, -1), number[by_step].reshape(steps, -1)


def floor_sum(n: int, m: int, a: int, b: int) -> int:
    """The sum of (a i + b) // m over i < n, for n, a, b >= 0 and m > 0, in O(log m) (Graham, Knuth and Patashnik,
    Concrete Mathematics, section 3.5; in this form in the AtCoder Library)."""
    total = 0
    while True:
        total += n * (n - 1) // 2 * (a // m) + n * (b // m)
        a, b = a % m, b % m
        top = a * n + b
        if top < m:
            return total
        n, b = divmod(top, m)
        m, a = a, m


def _weights(site_N: np.ndarray, site_temperature: float) -> np.ndarray:
    """How often each site's samples are drawn, by the site's number: in all as many draws as there are samples."""
    sizes = np.bincount(site_N).astype(float)
    weights = np.maximum(sizes, 1.0) ** (1 / site_temperature - 1)  # a number without a sample is never drawn
    return np.asarray(weights * len(site_N) / (weights @ sizes))


def _slots(size_X: np.ndarray, weight_X: np.ndarray) -> np.ndarray:
    """Draws per cycle of so many samples: whole, and at least one."""
    return np.maximum(1, np.rint(size_X * weight_X)).astype(np.int64)


def _permuted(n: int, key: int) -> np.ndarray:
    permutation = Permutation(n, key)
    return np.array([permutation(i) for i in range(n)])
