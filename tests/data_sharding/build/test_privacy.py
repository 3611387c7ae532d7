"""What may identify a person is found wherever it is planted, and nothing is found where all is well."""

import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mcsp.data_sharding.build import privacy
from mcsp.data_sharding.build.privacy import (
    find_identifiers,
    find_identifiers_in_index,
    find_identifiers_in_lists,
    find_identifiers_in_participant,
    find_identifiers_in_shard,
    find_identifiers_in_table,
    may_be_date,
    name_words,
    redact,
    suspicious,
    without_dates,
)
from mcsp.data_sharding.store.index import SHARDS_NAME, Rejection, Repair
from mcsp.data_sharding.store.table import Recordings
from tests.test_batch import window

HASH = "0123456789abcdef" * 2
PLANTED = {
    "date": [
        "2019-05-04", "04.05.2019", "4.5.19", "05/14/2019", "2019/05/04", "20190504T101112", "12-MAY-1987", "04May2019",
        "May 12, 1987", "12. Mai 1987", "1987-05", "rest_2019_05_04",
    ],
    "time": ["10:11:12", "acquired 09:30"],
    "record number": ["MRN 00123456", "1556964000", "EEG0012345", "MRN 123456"],
    "e-mail": ["someone@hospital.example.org"],
    "path": ["/home/anna/eeg/x.edf", "C:\\Users\\anna", "\\\\server\\share", "see ~/raw", "s3://bucket/x"],
    "subject id": ["sub-01", "eeg/sub-anna_task-rest_eeg.edf"],
    "MAC address": ["00:1A:2b:3c:4d:5e", "amplifier 00-1a-2b-3c-4d-5e"],
    "IP address": ["192.168.1.17", "fe80::1ff:fe23:4567:890a", "2001:0db8:85a3:0000:0000:8a2e:0370:7334"],
    "DICOM UID": ["1.2.840.113619.2.55.3.2831", "uid 1.3.12.2.1107.5.2.32.35162.2009"],
    "serial number": ["S/N 45123", "SN: AB-12345", "serial no. 45123", "DeviceSerialNumber=167047"],
    "birth year": ["born 1931", "geb. 1931", "born in 1931", "YOB 1931", "birth year: 1931"],
    "age": ["91.5 years", "aged 93", "93yo", "age 92,5", "90 Jahre", "102-year"],
}  # fmt: skip
HARMLESS = [
    f"sub-{HASH}/eeg/sub-{HASH}_task-rest_eeg.edf", "found 480000 samples, expected 1440000 bytes",
    "0.1234567", "-1.5e-07", "17networks_LH_VisCent_ExStr_1", "EEG 001", "T7", "1.26.4", "50/60 Hz", "10-20", "uV/Hz",
    "2 of 10", "Schaefer2018 400 parcels, 7 networks", "MNI152NLin2009cAsym", "restEyesOpen", "a" * 64,
    "arXiv 2405.18765", "EEG12345", "123456 samples",
    "SN1", "neonate 2019", "page 93", "90 ms", "12 years", "89.9 years", "2.0.1.4rc",
    "standard_1020",
]  # fmt: skip


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in PLANTED.items() for text in texts])
def test_each_kind_is_found_in_a_text_and_taken_out_of_it(kind: str, text: str) -> None:
    assert kind in {found for found, _ in suspicious(text)}
    assert suspicious(redact(text)) == []


@pytest.mark.parametrize("text", HARMLESS)
def test_what_a_corpus_is_full_of_is_not_suspected(text: str) -> None:
    assert suspicious(text) == []
    assert redact(text) == text


def test_names_are_found_as_words_in_any_case() -> None:
    names = name_words(["Anna-Lena", "Öztürk", "de", "Li"])
    assert names == {"anna", "lena", "öztürk"}
    assert suspicious("eeg of ANNA", names) == [("name", "ANNA")]
    assert suspicious("öztürk_rest", names) == [("name", "öztürk")]
    assert suspicious("annals and Lenard, de and Li", names) == []


def test_participants_columns_are_judged_by_name_and_value() -> None:
    columns: dict[str, Any] = {"diagnosis": "case", "sex": "f", "age": 34.0, "score": 123456.5, "age_bin": "30-34"}
    assert list(find_identifiers_in_participant("x", columns, frozenset())) == []
    planted = {
        "hospital": 1234567.0, "age": 93.0, "Age": 91.5, "age_at_scan": "92,5 years", "birth_year": "1930s",
        "note": "seen 2019-05-04", "Jahr": 1931.0, "device_serial": "x",
    }  # fmt: skip
    assert list(find_identifiers_in_participant("x", {"age": 89.0, "education_years": 16.0}, frozenset())) == []
    assert list(find_identifiers_in_participant("x", {"age": 90.0}, frozenset())) == ["x: age above 89"]
    for column, value in planted.items():
        assert list(find_identifiers_in_participant("x", {column: value}, frozenset())), column


def test_hashes_survive_redaction_and_what_hides_in_them_does_not_matter() -> None:
    text = f"sub-{HASH}/ses-1/sub-{HASH}_acq-0123456_eeg.edf"
    assert redact(text) == text.replace("acq-0123456", "acq-[record number]")


def test_several_findings_in_one_text_are_each_taken_out_at_their_own_place() -> None:
    text = "Anna on 2019-05-04, number 0123456, then anna again"
    assert redact(text, name_words(["Anna"])) == "[name] on [date], number [record number], then [name] again"


def test_a_corpus_as_built_holds_nothing_suspicious(built: Path) -> None:
    shards = sorted((built / SHARDS_NAME).glob("*.tar"))
    assert shards
    assert [
        line for shard in shards for line in find_identifiers_in_shard(shard, name_words(["name-01", "Anna"]))
    ] == []


Edit = Callable[[tarfile.TarInfo, bytes], bytes]


def rewrite(shard: Path, suffix: str, edit: Edit) -> None:
    """Change the first member whose name ends with ``suffix``."""
    with tarfile.open(shard) as archive:
        members = [(info, archive.extractfile(info).read()) for info in archive.getmembers()]  # type: ignore[union-attr]
    i = next(i for i, (info, _) in enumerate(members) if info.name.endswith(suffix))
    content = edit(*members[i])
    members[i][0].size = len(content)
    members[i] = (members[i][0], content)
    shard.chmod(0o644)
    with tarfile.open(shard, "w") as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))


def in_metadata(change: Callable[[dict[str, Any]], None]) -> Edit:
    def edit(info: tarfile.TarInfo, content: bytes) -> bytes:
        metadata = json.loads(content)
        change(metadata)
        return json.dumps(metadata).encode()

    return edit


def in_header(**fields: Any) -> Edit:
    def edit(info: tarfile.TarInfo, content: bytes) -> bytes:
        for name, value in fields.items():
            setattr(info, name, value)
        return content

    return edit


def twice(info: tarfile.TarInfo, content: bytes) -> bytes:
    return b'{"session": "2019-05-04", ' + content[1:]


SHARD_PLANTS: dict[str, tuple[str, Edit, str]] = {
    "date in a channel name": (".json", in_metadata(lambda m: m["recordings"][0]["channels"].append("4.5.19")), "date"),
    "name in a task": (".json", in_metadata(lambda m: m["recordings"][0].update(task="anna")), "name like 'xxxx'"),
    "name in place of a hash": (".json", in_metadata(lambda m: m.update(subject="anna")), "name like 'xxxx'"),
    "number in place of a hash": (".json", in_metadata(lambda m: m.update(subject="0012345678")), "record number"),
    "record number in the session": (".json", in_metadata(lambda m: m.update(session="00123456")), "record number"),
    "e-mail in a column": (".json", in_metadata(lambda m: m["participant"].update(note="a@b.org")), "e-mail"),
    "number in a column": (".json", in_metadata(lambda m: m["participant"].update(id=1234567)), "record number"),
    "key of its own": (".json", in_metadata(lambda m: m.update(acq_time=5)), "key 'acq_time'"),
    "key that is a date": (".json", in_metadata(lambda m: m.update({"2019-05-04": 5})), "date"),
    "path": (".json", in_metadata(lambda m: m.update(source="/data/raw/anna.edf")), "path"),
    "first of two equal keys": (".json", twice, "date"),
    "login name": (".json", in_header(uname="anna"), "name"),
    "time of change": (".json", in_header(mtime=1556964000), "date"),
    "pax record": (".npy", in_header(pax_headers={"comment": "born 12-MAY-1987"}), "date"),
    "array header": (".npy", lambda _, content: content.replace(b"}" + 6 * b" ", b"}4.5.19", 1), "array header: date"),
}  # fmt: skip


@pytest.mark.parametrize("plant", SHARD_PLANTS)
def test_what_is_planted_in_a_shard_is_found(copied: Path, plant: str) -> None:
    suffix, edit, expected = SHARD_PLANTS[plant]
    shard = min((copied / SHARDS_NAME).glob("train-*.tar"))
    rewrite(shard, suffix, lambda _, content: content)
    assert find_identifiers_in_shard(shard, name_words(["Anna"])) == []
    rewrite(shard, suffix, edit)
    findings = find_identifiers_in_shard(shard, name_words(["Anna"]))
    assert any(expected in line for line in findings), findings
    assert not any(text in line for line in findings for text in ("2019-05-04", "4.5.19", "anna", "1987"))


def test_text_between_and_after_the_members_is_found(copied: Path) -> None:
    shard = min((copied / SHARDS_NAME).glob("train-*.tar"))
    shard.chmod(0o644)
    content = bytearray(shard.read_bytes())
    content[-100:-90] = b"1987-05-12"
    with tarfile.open(shard) as archive:
        member = next(m for m in archive.getmembers() if m.size % 512 and 512 - m.size % 512 > 20)
    end = member.offset_data + member.size
    content[end : end + 8] = b"00123456"
    shard.write_bytes(content)
    assert [line.rpartition(": ")[2].split(" like")[0] for line in find_identifiers_in_shard(shard)] == [
        "record number",
        "date",
    ]


def test_a_damaged_shard_is_told(copied: Path) -> None:
    shard = min((copied / SHARDS_NAME).glob("train-*.tar"))
    shard.chmod(0o644)
    shard.write_bytes(np.random.default_rng(0).bytes(4096))
    assert len(find_identifiers_in_shard(shard)) == 1


@pytest.mark.parametrize("place", [94, 157, 251, 265, 291, 297, 323, 494, 506])
def test_a_number_at_either_end_of_every_text_field_of_a_tar_header_is_found(copied: Path, place: int) -> None:
    """Behind the end of the name, in the name of a link, of the user, of the group, of the folder, and in the rest."""
    shard = min((copied / SHARDS_NAME).glob("train-*.tar"))
    with tarfile.open(shard) as archive:
        offset = next(m.offset for m in archive if m.name.endswith(".npy"))
    shard.chmod(0o644)
    content = bytearray(shard.read_bytes())
    content[offset + place : offset + place + 6] = b"123456"
    content[offset + 148 : offset + 156] = 8 * b" "
    content[offset + 148 : offset + 156] = b"%06o\0 " % sum(content[offset : offset + 512])
    shard.write_bytes(content)
    findings = find_identifiers_in_shard(shard)
    assert findings and all("tar header: record number like '999999'" in line for line in findings)


def table_of(n: int, **changes: object) -> Recordings:
    """Rows of people with hashes; the last one has ``changes``."""
    subjects = [f"{i:032x}" for i in range(n)]
    rows = [
        replace(window().recording, key=f"a_{s}", member=f"a_{s}.eeg-0.npy", subject=s, session="", site="a")
        for s in subjects
    ]
    return Recordings.of([*rows[:-1], replace(rows[-1], **changes)])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("column", "text", "kind"),
    [
        ("shard", "train-1987-05-12.tar", "shard: date"), ("site", "mrn0012345678", "site: record number"),
        ("task", "1987-05-12", "task: date"), ("run", "0012345678", "run: record number"),
        ("key", "a_1987-05-12", "key: date"), ("member", "a_1987-05-12.npy", "member: date"),
        ("session", "20190504", "session: date like '99999999'"), ("session", "2019", "session: date"),
        ("participant", '{"age": 93}', "participant: age above 89"),
        ("participant", '{"dob": "x"}', "participant: column 'dob' may identify a person"),
        ("quality", '{"anna": 1.0}', "quality: name like 'xxxx'"),
        ("channels", ["Cz", "anna", "Pz"], "channels: name like 'xxxx'"),
    ],
)  # fmt: skip
def test_what_is_planted_in_any_column_of_the_table_is_found(
    monkeypatch: pytest.MonkeyPatch, column: str, text: object, kind: str
) -> None:
    """Also in the last of the rows that are looked at together; hashes of subjects are none."""
    monkeypatch.setattr(privacy, "_ROWS_AT_ONCE", 2)
    assert list(find_identifiers_in_table(table_of(5), frozenset())) == []
    for n in (4, 5):
        found = list(find_identifiers_in_table(table_of(n, **{column: text}), name_words(["Anna"])))
        assert any(line.startswith(f"recordings.arrow: {kind}") for line in found), found


def test_what_comes_again_in_the_table_is_told_once_as_long_as_it_is_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = [replace(row, participant='{"age": 93}') for row in table_of(6)]
    monkeypatch.setattr(privacy, "_ROWS_AT_ONCE", 2)
    assert len(list(find_identifiers_in_table(Recordings.of(rows), frozenset()))) == 1
    monkeypatch.setattr(privacy, "_REMEMBERED_TEXTS", 0)
    assert len(list(find_identifiers_in_table(Recordings.of(rows), frozenset()))) == 3


def test_the_description_may_have_references_and_versions_and_no_person() -> None:
    index = {"software": {"numpy": "2019.05.04"}, "reasons": {"flat": 1}}
    description = {"GeneratedBy": [{"Name": "mcsp", "Description": "made 2019-05-04"}],
                   "DatasetDOI": "doi:10.18112/openneuro.ds0012345678.v1.0.0",
                   "HowToAcknowledge": "see https://x.org/2019-05-04"}  # fmt: skip
    assert list(find_identifiers_in_index(index, description, name_words(["Anna"]))) == []
    planted = {**index, "config": {"sites": ["Anna"]}}, {**description, "Authors": ["Anna", "b@c.org"]}
    assert list(find_identifiers_in_index(*planted, name_words(["Anna"]))) == [
        "index.json: config.sites[]: name like 'xxxx'",
        "dataset_description.json: Authors[]: name like 'xxxx'",
        "dataset_description.json: Authors[]: e-mail like 'x@x.xxx'",
    ]
    assert list(find_identifiers([("x", "https://x.org/2019-05-04")], frozenset())) == ["x: date like '9999-99-99'"]


def test_lists_of_rejections_and_repairs_are_searched_in_every_field() -> None:
    entries = [Rejection("a", "x", "eeg", "flat", "of Anna"), Repair("a", "sub-01_eeg.edf", "eeg", "unit")]
    assert list(find_identifiers_in_lists(entries, name_words(["Anna"]))) == [
        "rejected.jsonl: detail: name like 'xxxx'", "repairs.jsonl: file: subject id like 'xxx-99'",
    ]  # fmt: skip


def test_a_place_that_is_personal_itself_is_not_repeated() -> None:
    assert list(find_identifiers([("born 1931", "4.5.19")], frozenset())) == ["[birth year]: date like '9.9.99'"]
    known = [HASH[:12]]
    assert list(find_identifiers([("x", f"mrn0012345678 {HASH[:12]}")], frozenset(), known)) == [
        "x: record number like '9999999999'"
    ]


def test_labels_of_six_digits_may_be_dates_and_shorter_ones_are_kept() -> None:
    assert [without_dates(label) for label in ("rest", "12345", "123456", "a1234567b")] == ["rest", "12345", "", ""]
    dates = ["20190504", "2019", "190504", "04May", "May04", "y2019x"]
    assert [may_be_date(label) for label in dates] == [True] * 6
    assert [may_be_date(label) for label in ("1", "12345", "baseline", "Mayo", "12019")] == [False] * 5
