"""In which order a stream of samples is read: functions of integers with random access; no state, no shuffled list."""

import functools

import numpy as np

from mcsp.schema import mix64, random_key


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

    def __init__(self, site_N: np.ndarray, group_N: np.ndarray, site_temperature: float, key: int) -> None:
        """``site_N`` and ``group_N``: integers of each of the stream's N > 0 samples, in the order of their numbers."""
        self.key = key
        self._members = np.lexsort((site_N, group_N)).astype(np.int32)  # stable: by group, site, number
        site, group = site_N[self._members], group_N[self._members]
        first = np.flatnonzero(np.concatenate([[True], (np.diff(site) != 0) | (np.diff(group) != 0)]))
        self._first, self._size = first, np.diff(np.append(first, len(site)))
        sizes = np.bincount(site_N).astype(float)
        weights = np.where(sizes > 0, sizes, 1.0) ** (1 / site_temperature - 1) * (sizes > 0)
        weights *= len(site) / (weights @ sizes)
        self._slots = np.maximum(1, np.rint(self._size * weights[site[first]])).astype(np.int64)
        self._slot_ends = np.cumsum(self._slots)
        # Cells of group g are first_cell[g] to first_cell[g + 1] - 1; its slots end at group_ends[g].
        new_group = np.concatenate([[True], np.diff(group[first]) != 0])
        self._first_cell = np.flatnonzero(new_group)
        self._group_ends = self._slot_ends[np.append(self._first_cell[1:], len(first)) - 1]
        self._group_slots = np.diff(self._group_ends, prepend=0)
        self.length = int(self._slot_ends[-1])  # positions per cycle

    def __call__(self, position: int, shift: int = 0) -> tuple[int, int]:
        """The sample that ``position`` reads and how many passes over its cell came before.

        With ``shift``, what is read that many positions later in the same cycle, which begins again at its end.
        """
        cycle, place = divmod(position, self.length)
        place = (place + shift) % self.length
        groups, ends = self._visits(cycle)
        visit = int(np.searchsorted(ends, place, side="right"))
        group, place = int(groups[visit]), place - int(ends[visit - 1] if visit else 0)
        n_slots = int(self._group_slots[group])
        slot = int(self._group_ends[group]) - n_slots
        slot += Permutation(n_slots, random_key(self.key, 0, cycle, group))(place)
        cell = int(np.searchsorted(self._slot_ends, slot, side="right"))
        slots, size = int(self._slots[cell]), int(self._size[cell])
        draw = cycle * slots + slot - int(self._slot_ends[cell]) + slots
        pass_, index = divmod(draw, size)
        if slots != size:
            # The slots of a cycle are in a new order already; where a pass is no cycle it needs an order of its own.
            index = Permutation(size, random_key(self.key, 1, pass_, cell))(index)
        return int(self._members[self._first[cell] + index]), pass_

    def _visits(self, cycle: int) -> tuple[np.ndarray, np.ndarray]:
        """The groups in the order of a cycle, and the place at which each ends."""
        n = len(self._first_cell)
        return _visits(self, cycle) if n > 1 else (np.zeros(1, dtype=np.int64), self._group_ends)


@functools.lru_cache(maxsize=8)
def _visits(order: Order, cycle: int) -> tuple[np.ndarray, np.ndarray]:
    permutation = Permutation(len(order._first_cell), random_key(order.key, 2, cycle))
    groups = np.array([permutation(i) for i in range(permutation.n)])
    return groups, np.cumsum(order._group_slots[groups])
