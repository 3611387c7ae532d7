"""Read participants.tsv and assign its rows to subjects."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from mcsp.data_sharding.bids.reasons import RecordingError
from mcsp.data_sharding.bids.ref import Site
from mcsp.data_sharding.bids.tables import read_tsv
from mcsp.wording import listed

_SHOWN = 3
Row = dict[str, str]


@dataclass
class Participants:
    """The rows of a site's participants.tsv, and what is doubtful about them."""

    rows: list[Row] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._by_subject: dict[str, list[Row]] = {}
        self._by_number: dict[int, set[str]] = {}
        for row in self.rows:
            subject = _label(row["participant_id"], "sub-")
            self._by_subject.setdefault(subject, []).append(row)
            if subject.isdecimal():
                self._by_number.setdefault(int(subject), set()).add(subject)
        self._absent: list[str] = []
        self._renamed: list[str] = []
        self._contradictions: dict[str, list[str]] = {}

    def of(self, subject: str, session: str = "") -> Row:
        """What is said of a subject at a session; of several rows only what they agree on.

        Rows are joined by ``participant_id``, which may lack leading zeros where that is no doubt, and by
        ``session_id`` where the table has it.
        """
        label = subject
        if subject not in self._by_subject and subject.isdecimal():
            alike = self._by_number.get(int(subject), set())
            if len(alike) == 1:
                (label,) = alike
                self._renamed.append(f"sub-{label} for sub-{subject}")
        rows = self._by_subject.get(label, [])
        if not rows:
            self._absent.append(f"sub-{subject}")
        of_session = [row for row in rows if session and _label(row.get("session_id", ""), "ses-") == session]
        rows = of_session or rows
        merged: Row = {}
        for name in dict.fromkeys(name for row in rows for name in row):
            values = {row[name] for row in rows if name in row}
            if len(values) == 1:
                merged[name] = values.pop()
            elif session or "session_id" not in rows[0]:  # without a session, rows of several may well differ
                self._contradictions.setdefault(name, []).append(f"sub-{subject}")
        return merged

    def notes(self, columns: Sequence[str]) -> list[str]:
        """One line for each kind of doubt about ``columns`` that :meth:`of` came upon."""
        if not columns or not self.rows:
            return []
        doubts = [("row taken", self._renamed), ("no row for", self._absent)]
        doubts += [(f"rows contradict each other in {c}, which is not taken, of", self._contradictions.get(c, []))
                   for c in columns]  # fmt: skip
        lines = []
        for what, found in doubts:
            subjects = list(dict.fromkeys(found))
            lines += [f"participants.tsv: {what} {listed(subjects, _SHOWN)}"] if subjects else []
        return lines


def _label(text: str, prefix: str) -> str:
    return text.strip().removeprefix(prefix)


def read_participants(site: Site) -> Participants:
    """A site's participants.tsv; no rows where there is no such file.

    Raises:
        RecordingError: the table cannot be read, or has no column ``participant_id``, or two.
    """
    file = site.root / "participants.tsv"
    if not file.is_file() and not file.is_symlink():
        return Participants()
    rows = read_tsv(file)
    if rows and not any("participant_id" in row for row in rows):
        found = ", ".join(repr(name) for name in rows[0])
        raise RecordingError("bad-table", f"{file.name}: no column participant_id, expected it among {found[:120]}")
    return Participants([row for row in rows if "participant_id" in row])
