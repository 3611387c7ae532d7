"""How much time the files of a site that never end have cost a build: one site must not stop all others."""

import time
import uuid

from mcsp.config import CorpusConfig
from mcsp.data_sharding.bids.reasons import RecordingError
from mcsp.data_sharding.store.files import Location, names, private_folder, write_atomic

_FOLDER = "timeouts"
USED_UP = "the time of the site is used up"  # how the line of such a recording begins
# Between two looks at what the other workers have lost: a listing of an object store takes some 20 ms.
_LOOK_SECONDS = 5.0


class SiteTime:
    """What the workers of a build lose to each site; a mark for each loss lies beside the shards, where all see it."""

    def __init__(self, build: Location, config: CorpusConfig) -> None:
        """``build`` is the folder of the build's own files."""
        self._folder = build / _FOLDER
        self._config = config
        self._known: dict[str, tuple[float, int]] = {}  # site -> when looked at, marks

    def lose(self, site: str) -> None:
        """A recording of the site was not read within its time."""
        folder = self._folder / site
        private_folder(self._folder)
        private_folder(folder)
        write_atomic(folder / uuid.uuid4().hex, b"", private=True)
        self._known.pop(site, None)

    def require(self, site: str) -> None:
        """Raise :class:`RecordingError` (``timeout``) where the site has used up its time."""
        looked, marks = self._known.get(site, (-_LOOK_SECONDS, 0))
        if time.monotonic() - looked >= _LOOK_SECONDS:
            marks = len(names(self._folder / site))
            self._known[site] = (time.monotonic(), marks)
        lost, limit = marks * self._config.read_timeout_seconds, self._config.site_timeout_seconds
        if lost > 0 and lost >= limit:
            cost = f"files of this site that never end have cost {lost:g} s"
            raise RecordingError("timeout", f"{USED_UP}: {cost}, expected less than site_timeout_seconds = {limit:g}")

    def forget(self) -> None:
        """Begin anew: the losses of an earlier run of this build may have been mended."""
        for site in names(self._folder):
            for mark in names(self._folder / site):
                (self._folder / site / mark).unlink(missing_ok=True)
