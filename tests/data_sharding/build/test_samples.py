"""A sample is read recording by recording: what is refused, what is told of it, and the clock of the others."""

import math
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mcsp.config import CorpusConfig
from mcsp.data_sharding.bids.reasons import RecordingError
from mcsp.data_sharding.bids.ref import RecordingRef, Site
from mcsp.data_sharding.bids.write import write_tsv
from mcsp.data_sharding.build.plan import PlannedSample
from mcsp.data_sharding.build.privacy import require_labels
from mcsp.data_sharding.build.shards import SampleRecording, onset_seconds, read_sample
from mcsp.data_sharding.clean import read as room
from mcsp.data_sharding.clean.read import USED_UP, SiteTime
from mcsp.data_sharding.clean.recording import CleanRecording
from mcsp.data_sharding.store.index import Rejection

HASH = "0123456789abcdef" * 2


class Given:
    """Reads what a test gives for each file: a reading, or an error."""

    def __init__(self, answers: dict[str, CleanRecording | RecordingError]) -> None:
        self.answers, self.asked = answers, list[str]()

    def read(self, ref: RecordingRef) -> CleanRecording:
        self.asked.append(ref.path.name)
        answer = self.answers[ref.path.name]
        if isinstance(answer, RecordingError):
            raise answer
        return answer


def reading(began: float = math.nan, seconds: float = 60.0, sfreq: float = 200.0, name: str = "Cz") -> CleanRecording:
    x_TC = np.zeros((round(seconds * sfreq), 1), np.float32)
    return CleanRecording(x_TC, sfreq, "uV", [name], np.zeros((1, 3)), np.ones(1, dtype=bool), began=began)


def ref_of(site: Site, name: str) -> RecordingRef:
    path = site.root / "sub-1" / name
    entities = {"subject": "1", **dict(part.split("-") for part in name.split("_")[1:-1])}
    return RecordingRef(site, path, "eeg" if "_eeg" in name else "fmri", entities, {})


def sample(site: Site, *names: str, participant: str = "{}") -> PlannedSample:
    refs = tuple(ref_of(site, name) for name in names)
    return PlannedSample(f"a_{HASH}", site, HASH, "", "train", participant, refs)


def read_all(planned: PlannedSample, process: Given, **changes: Any) -> tuple[list[SampleRecording], list[Rejection]]:
    """Of a site that has lost no time."""
    with TemporaryDirectory() as folder:
        options = {"excluded": {}, "done": lambda ref, seconds: None, "site_time": site_time(Path(folder))}
        return read_sample(planned, process, **options | changes)  # type: ignore[arg-type]


def read(planned: PlannedSample, process: Given, **changes: Any) -> tuple[list[str], list[tuple[str, str]]]:
    """Names of what is stored, and file and reason of what is not."""
    stored, rejected = read_all(planned, process, **changes)
    return [s.ref.path.name for s in stored], [(r.file, r.reason) for r in rejected]


SITE = Site("a", Path("/data/a"), False, None)
EEG, BOLD = "sub-1_task-rest_eeg.edf", "sub-1_task-rest_bold.nii.gz"


def test_a_recording_that_fails_disturbs_no_other_and_each_is_told_with_its_length() -> None:
    process = Given({EEG: RecordingError("flat", "why"), BOLD: reading(seconds=90.0, sfreq=0.5)})
    told: list[tuple[str, float | None]] = []
    done = lambda ref, seconds: told.append((ref.path.name, seconds))  # noqa: E731
    stored, rejected = read_all(sample(SITE, EEG, BOLD), process, done=done)
    assert [s.ref.path.name for s in stored] == [BOLD] and math.isnan(stored[0].onset_seconds)
    assert told == [(EEG, None), (BOLD, 90.0)]
    [rejection] = rejected
    assert vars(rejection) == {
        "site": "a",
        "file": f"sub-1/{EEG}",
        "modality": "eeg",
        "reason": "flat",
        "detail": "why",
    }


def test_what_is_stored_elsewhere_or_of_a_site_with_a_fault_is_not_read() -> None:
    process = Given({EEG: reading(), BOLD: reading()})
    excluded = {f"a/sub-1/{EEG}": "stored as b", f"b/sub-1/{BOLD}": "of another site"}
    assert read(sample(SITE, EEG, BOLD), process, excluded=excluded) == ([BOLD], [(f"sub-1/{EEG}", "duplicate")])
    assert process.asked == [BOLD]
    faulty = replace(SITE, fault=("invalid-json", "x"))
    assert read(sample(faulty, EEG), process)[1] == [(f"sub-1/{EEG}", "invalid-json")] and process.asked == [BOLD]


@pytest.mark.parametrize(
    ("name", "channel", "participant", "reason"),
    [
        (EEG, "C" * 64, "{}", ""), (EEG, "C" * 65, "{}", "bad-name"),
        (EEG, "4.5.19", "{}", "suspected-personal-data"), (EEG, "Cz", '{"age": 93}', "suspected-personal-data"),
        (EEG, "Cz", '{"age": 89}', ""), ("sub-1_task-12345678_eeg.edf", "Cz", "{}", ""),
        ("sub-1_task-May2019_eeg.edf", "Cz", "{}", ""), ("sub-1_task-04May2019_eeg.edf", "Cz", "{}",
                                                        "suspected-personal-data"),
        ("sub-1_task-rest_run-00:1A_eeg.edf", "Cz", "{}", "bad-name"),
        ("sub-1_task-re st_eeg.edf", "Cz", "{}", "bad-name"),
    ],
)  # fmt: skip
def test_texts_that_would_go_along_and_may_be_personal_keep_a_recording_out(
    name: str, channel: str, participant: str, reason: str
) -> None:
    stored, rejected = read(sample(SITE, name, participant=participant), Given({name: reading(name=channel)}))
    assert (stored, rejected) == (([], [(f"sub-1/{name}", reason)]) if reason else ([name], []))


def test_findings_are_told_by_their_form_and_a_long_name_by_its_beginning() -> None:
    many = replace(reading(), channels=[f"{i}.5.19" for i in range(1, 6)])
    [rejection] = read_all(sample(SITE, EEG), Given({EEG: many}))[1]
    assert rejection.detail == "; ".join(["channel: date like '9.9.99'"] * 3) + " and 2 more"
    long = Given({EEG: reading(name="electrode-" * 7)})
    [rejection] = read_all(sample(SITE, EEG), long)[1]
    assert rejection.detail == (
        f"{EEG}: a channel or parcel is called 'electrode-electrode-'..., 70 characters, expected at most 64"
    )


@pytest.mark.parametrize(
    ("entities", "told"),
    [
        ({"subject": "01", "session": "pre", "task": "rest", "run": "2", "acquisition": "x", "direction": "AP"}, ""),
        ({"subject": "1"}, ""), ({"subject": "1", "space": "a+b"}, ""), ({"subject": "a+b"}, "subject 'a+b'"),
        ({"subject": "1", "session": ""}, "session ''"), ({"subject": "1", "direction": "a.b"}, "direction 'a.b'"),
        ({"subject": "1", "": "Anna"}, "'Anna' between its entities"),
        ({"subject": "1", "": "\udce9", "task": "\udce9"}, ""),  # no UTF-8: told when it is read
    ],
)  # fmt: skip
def test_labels_are_letters_and_digits(entities: dict[str, str], told: str) -> None:
    ref = RecordingRef(SITE, SITE.root / "x_eeg.edf", "eeg", entities, {})
    if not told:
        require_labels(ref)
        return
    with pytest.raises(RecordingError) as error:
        require_labels(ref)
    assert error.value.reason == "bad-name" and str(error.value).startswith(f"x_eeg.edf: {told}")


def simultaneous(root: Path, marker: str | None) -> Site:
    (root / "sub-1").mkdir(parents=True, exist_ok=True)
    return Site("a", root, False, None, "simultaneous", marker)


def test_only_simultaneous_recordings_have_onsets_by_the_marker_or_else_by_the_clock(tmp_path: Path) -> None:
    process = Given({EEG: reading(1000.0), BOLD: reading(1003.5, sfreq=0.5)})
    for pairing, expected in (("simultaneous", [0.0, 3.5]), ("session", [math.nan, math.nan])):
        site = replace(simultaneous(tmp_path, None), pairing=pairing)
        stored, _ = read_all(sample(site, EEG, BOLD), process)
        np.testing.assert_array_equal([s.onset_seconds for s in stored], expected)
    marked = simultaneous(tmp_path, "R128")
    table = tmp_path / "sub-1/sub-1_task-rest_events.tsv"
    refs = [ref_of(marked, EEG), ref_of(marked, BOLD)]
    refs[0] = replace(refs[0], companions={"events.tsv": (table,)})
    planned = replace(sample(marked, EEG, BOLD), recordings=tuple(refs))
    for value, expected in (("R128", 7.25), ("S1", 3.5)):
        write_tsv(table, ("onset", "duration", "value"), [(7.25, 0, value)])
        stored, _ = read_all(planned, process)
        assert [s.onset_seconds for s in stored] == [0.0, expected]


def test_onsets_are_rounded_to_microseconds_and_recordings_that_touch_do_not_overlap() -> None:
    times = [("eeg", 100.0, 60.0), ("fmri", 100.1234564, 60.0)]
    assert onset_seconds(times) == [0.0, 0.123456]  # type: ignore[arg-type]
    for start in (160.0, 40.0):
        assert all(math.isnan(s) for s in onset_seconds([("eeg", 100.0, 60.0), ("fmri", start, 60.0)]))
    for start, expected in ((159.5, [0.0, 59.5]), (40.5, [59.5, 0.0])):
        assert onset_seconds([("eeg", 100.0, 60.0), ("fmri", start, 60.0)]) == expected
    assert onset_seconds([]) == []


def site_time(root: Path, seconds: float = 100, limit: float = 200) -> SiteTime:
    return SiteTime(CorpusConfig(bids_root=root, out_dir=root, read_timeout_seconds=seconds,
                                 site_timeout_seconds=limit))  # fmt: skip


def test_timeouts_are_counted_against_the_site_and_no_other_failures_are(tmp_path: Path) -> None:
    """At the limit the rest is not read any more, and is not counted again."""
    names = [f"sub-1_task-a{i}_eeg.edf" for i in range(5)]
    reasons = ["timeout", "flat", "timeout", "timeout", "timeout"]
    process = Given({n: RecordingError(r, "x") for n, r in zip(names, reasons, strict=True)})
    used = site_time(tmp_path)
    _, rejected = read_all(sample(SITE, *names), process, site_time=used)
    assert process.asked == names[:3] and [r.reason for r in rejected] == reasons
    assert [r.detail.startswith(USED_UP) for r in rejected] == [False] * 3 + [True] * 2
    assert len(list((tmp_path / ".build" / "timeouts" / "a").iterdir())) == 2
    assert read(sample(SITE, names[1]), process)[1] == [(f"sub-1/{names[1]}", "flat")], (
        "of a site without losses all is read"
    )


def test_a_site_without_losses_is_read_whatever_the_limit(tmp_path: Path) -> None:
    used = site_time(tmp_path, 100, 1)
    used.require("a")
    used.lose("a")
    with pytest.raises(RecordingError, match="have cost 100 s, expected less than site_timeout_seconds = 1") as error:
        used.require("a")
    assert error.value.reason == "timeout"


def test_losses_of_other_workers_are_looked_for_every_five_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listing of an object store takes its time; one's own losses count at once."""
    now = [50.0]
    monkeypatch.setattr(room, "time", SimpleNamespace(monotonic=lambda: now[0]))
    one, other = site_time(tmp_path, limit=100), site_time(tmp_path, limit=100)
    one.require("a")
    other.lose("a")
    now[0] = 54.9
    one.require("a")
    now[0] = 55.0
    with pytest.raises(RecordingError, match=USED_UP):
        one.require("a")
    with pytest.raises(RecordingError, match=USED_UP):
        other.require("a")


def test_another_run_of_a_build_begins_without_losses(tmp_path: Path) -> None:
    used = site_time(tmp_path, limit=100)
    for site in ("a", "b", "a"):
        used.lose(site)
    site_time(tmp_path).forget()
    assert [list((tmp_path / ".build" / "timeouts" / site).iterdir()) for site in "ab"] == [[], []]
    site_time(tmp_path, limit=100).require("a")
