"""How far the shards are that are being built: what workers tell and the driver asks, in a process of its own.

The process starts in every build, so nothing is imported here.
"""

from collections.abc import Sequence

# Site -> recordings stored, recordings rejected, hours stored.
SiteCounts = dict[str, list[float]]


class Progress:
    """The latest counts of each shard that is being built."""

    def __init__(self) -> None:
        """Nothing is known yet."""
        self._shards: dict[str, SiteCounts] = {}

    def tell(self, shard: str, counts: SiteCounts) -> None:
        """A worker has got so far."""
        self._shards[shard] = counts

    def of(self, shards: Sequence[str]) -> dict[str, SiteCounts]:
        """What is known of some shards; all others are forgotten."""
        self._shards = {shard: self._shards[shard] for shard in shards if shard in self._shards}
        return self._shards
