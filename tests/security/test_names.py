"""What a site lets slip in labels, cells, names and texts is in no published byte; the house keeps the lines."""

import csv
from pathlib import Path

import numpy as np
import pytest

from mcsp.config import CorpusConfig
from mcsp.data_sharding.bids.write import (
    write_eeg,
    write_json,
    write_parcellated_bold,
    write_parcellation,
    write_participants,
    write_tsv,
)
from mcsp.data_sharding.build.corpus import build_corpus
from mcsp.data_sharding.build.privacy import find_identifiers, find_identifiers_in_index
from mcsp.data_sharding.build.pseudonyms import subject_hash
from mcsp.data_sharding.store.index import read_rejected, read_repairs
from mcsp.schema import KEY_VARIABLE
from tests.data_sharding.conftest import CHANNELS, DESCRIPTION, KEY, PARCELS, PLACES, bold, eeg_uv
from tests.security.published import published_bytes

SIDECAR = {"SamplingFrequency": 250, "PowerLineFrequency": 50}
# Of columns of participants.tsv that go along: what the scanner must know.
NOTES = {
    "31": "00:1A:2b:3c:4d:5e", "32": "192.168.7.45", "33": "1.2.840.113619.2.55.3", "34": "S/N 450732",
    "35": "geb. 1931", "36": "aged 93.5", "37": "12-MAY-1987",
}  # fmt: skip
LONG = "a" * 30_000


def write_site(root: Path) -> dict[str, str]:
    """A site with a secret in each place; file -> reason of what is not stored."""
    write_json(root / "dataset_description.json", DESCRIPTION)
    reasons: dict[Path, str] = {}
    people = [(f"sub-{n}", "n/a", "34") for n in ("1", "2", "3", "4", "5", "9")]
    people += [*((f"sub-{n}", note, "34") for n, note in NOTES.items()), ("sub-38", "n/a", "91.5")]
    write_participants(root, {"note": {}, "age": {}}, people)

    def eeg(subject: str) -> Path:
        return write_eeg(root, subject, "rest", eeg_uv(12, seed=len(reasons)), CHANNELS, SIDECAR)

    eeg("1")
    reasons[eeg("Xüyz07")] = "bad-name"
    reasons[path := eeg("2")] = "bad-table"
    write_tsv(path.with_name("sub-2_electrodes.tsv"), ("name", "x", "y", "z"), [("Fp1", "Zwetschke", 1, 2)])
    write_json(path.with_name("sub-2_coordsystem.json"), {"EEGCoordinateSystem": "CapTrak", "EEGCoordinateUnits": "mm"})
    reasons[path := eeg("3")] = "channels-mismatch"
    write_tsv(path.with_name("sub-3_task-rest_channels.tsv"), ("name", "type"), [("Holunder", "EEG")] * 7)
    folder = root / "sub-4" / "Pflaumenmus"
    folder.mkdir(parents=True)
    reasons[path := folder / "sub-4_task-rest_acq-Mirabelle_eeg.edf"] = "unreadable"
    path.write_bytes(b"0       Brombeere" + bytes(300))
    session = write_eeg(root, "5", "rest", eeg_uv(12, seed=50), [*CHANNELS[:6], "Johannisbeere"], SIDECAR)
    (root / "sub-5" / "ses-04May2019").mkdir()
    session.parent.rename(root / "sub-5/ses-04May2019/eeg")
    for file in (root / "sub-5/ses-04May2019/eeg").iterdir():
        file.rename(file.with_name(file.name.replace("sub-5_", "sub-5_ses-04May2019_")))
    for subject in (*NOTES, "38"):
        reasons[eeg(subject)] = "suspected-personal-data"
    write_parcellation(root, "Long", [LONG, *PARCELS[1:]], np.array(PLACES))
    table = write_parcellated_bold(root, "9", "Long", [LONG, *PARCELS[1:]], bold(), {"RepetitionTime": 2.0})
    reasons[table] = "bad-name"
    return {path.relative_to(root).as_posix(): reason for path, reason in reasons.items()}


def test_what_slipped_into_a_site_is_in_no_published_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    reasons = write_site(tmp_path / "bids" / "clinic")
    out = tmp_path / "corpus"
    columns = {"participants_columns": ["note", "age"], "exclude": ["sub-Himbeere"]}
    config = CorpusConfig(bids_root=tmp_path / "bids", out_dir=out, max_quarantined=1.0, workers=2, **columns)
    index, _ = build_corpus(config)
    assert index["totals"]["all"]["recordings"] == 2, "the sound ones are stored"
    secrets = [
        "üyz07", "\\u00fcyz07", "Zwetschke", "Holunder", "Pflaumenmus", "Mirabelle", "Brombeere", "Johannisbeere",
        "04May2019", "Himbeere", "91.5", LONG[:65], *NOTES.values(),
    ]  # fmt: skip
    for name, content in published_bytes(out):
        for secret in secrets:
            assert secret.encode() not in content, f"{name}: {secret}"
    # Those who hold the files are told everything.
    with open(out / ".build" / "rejected.tsv", encoding="utf-8", newline="") as lines:
        private = list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert {row["original_file"]: row["reason"] for row in private} == reasons
    told = " ".join(row["original_detail"] for row in private)
    assert "subject 'Xüyz07', expected letters and digits" in told and "'Zwetschke'" in told and "'Holunder'" in told
    assert "30000 characters, expected at most 64" in told and "MAC address like '99:9x:9x:9x:9x:9x'" in told
    public = {(r.reason, r.file, r.detail) for r in read_rejected(out)}
    assert ("bad-name", f"sub-{subject_hash(KEY.encode(), 'clinic', 'Xüyz07')}", "") in public
    assert {r.repair for r in read_repairs(out)} == {"EEG channels without a position are left out"}


@pytest.mark.parametrize("text", [*NOTES.values(), "recorded 2019-05-04", "data of Anna"])
def test_a_description_that_says_too_much_is_told(text: str) -> None:
    description = {"Name": text, "GeneratedBy": [], "SourceDatasets": [{"Site": "a", "Name": "x"}]}
    assert len(list(find_identifiers_in_index({}, description, frozenset({"anna"})))) == 1
    sources = {"Name": "MCSP corpus", "SourceDatasets": [{"Site": "a", "Name": text}]}
    assert len(list(find_identifiers_in_index({}, sources, frozenset({"anna"})))) == 1


def test_the_scanner_finds_forms_and_nothing_else() -> None:
    """What SECURITY.md says that it cannot do."""
    text = "the mayor's twin, left-handed, treated after the accident at the mill"
    assert list(find_identifiers([("note", text)], frozenset())) == []
    security = (Path(__file__).parents[2] / "SECURITY.md").read_text(encoding="utf-8")
    assert "Forms, not people" in security
