"""An overlap with the pretraining subjects is found, excluded, or loudly not checked."""

from pathlib import Path
from typing import Any

import pytest

from mcsp.data_sharding.build.pseudonyms import key_fingerprint, subject_hash
from mcsp.data_sharding.store.reader import Corpus
from mcsp.evaluate.evaluate import Overlap, find_overlap
from mcsp.evaluate.report.tables import overlap_line
from mcsp.export.export import preprocessing_of, pretraining_subjects
from mcsp.model.weights import SUBJECTS_FILE
from mcsp.schema import KEY_FINGERPRINT
from tests.conftest import SUBJECT_KEY

RUN = {"config": {"window_seconds": {"eeg": 10.0, "fmri": 30.0}, "hemodynamic_delay_seconds": 5.0}}


def exported(corpus: Corpus, folder: Path) -> dict[str, Any]:
    """An export's preprocessing and its list of subjects, as export.py writes them."""
    (folder / SUBJECTS_FILE).write_text("".join(f"{s}\n" for s in pretraining_subjects(corpus)))
    return preprocessing_of(RUN, corpus, ("eeg", "fmri"))


def overlap(export: dict[str, Any], folder: Path, corpus: Corpus) -> Overlap:
    return find_overlap(export, folder, corpus, [f"{r.site}/{r.subject}" for r in corpus.recordings])


def test_the_same_people_under_another_key_are_not_said_to_be_new(corpus_dir: Path, tmp_path: Path) -> None:
    """tests/evaluate/test_bids_corpus.py has the same with a corpus that was built under another key."""
    corpus, key = Corpus(corpus_dir), b"the key of a laboratory that knows no other"
    export = exported(corpus, tmp_path)
    export["corpus_index_hash"] = "0" * 64
    here, there = key_fingerprint(key), export[KEY_FINGERPRINT]
    corpus.index[KEY_FINGERPRINT] = here
    found = find_overlap(export, tmp_path, corpus, [f"simulated-a/{subject_hash(key, 'simulated-a', '01')}"])
    assert found.seen is None and found.count is None and here != there
    assert found.text.startswith("OVERLAP NOT CHECKED: ")
    assert here[:8] in found.text and there[:8] in found.text and "MCSP_SUBJECT_KEY" in found.text
    results = {"subjects_seen_in_pretraining": found.count, "subjects": 16, "overlap": found.text}
    assert overlap_line(results).startswith("warning: OVERLAP NOT CHECKED")


def test_the_same_corpus_overlaps_and_a_corpus_of_others_under_the_same_key_does_not(
    corpus_dir: Path, tmp_path: Path
) -> None:
    corpus = Corpus(corpus_dir)
    export = exported(corpus, tmp_path)
    assert corpus.index[KEY_FINGERPRINT] == key_fingerprint(SUBJECT_KEY.encode())
    assert len(corpus.index[KEY_FINGERPRINT]) == 64  # what the scan for personal data takes for a hash
    found = overlap(export, tmp_path, corpus)
    assert (found.count, found.text) == (24, "24 of the 32 subjects were in the pretraining data.")
    (tmp_path / SUBJECTS_FILE).write_text("simulated-a/0123456789abcdef\n")
    export["corpus_index_hash"] = "0" * 64
    found = overlap(export, tmp_path, corpus)
    assert found.count == 0 and found.text.startswith("None of the 32 subjects were in the pretraining data. ")
    assert "no site called simulated-b: its people are not recognised where they were also recorded" in found.text
    assert not overlap_line({"subjects_seen_in_pretraining": 0, "overlap": found.text}).startswith("warning")


@pytest.mark.parametrize("lost", ["list", "export's fingerprint", "corpus's fingerprint"])
def test_what_is_missing_is_named(corpus_dir: Path, tmp_path: Path, lost: str) -> None:
    corpus = Corpus(corpus_dir)
    export = exported(corpus, tmp_path)
    export["corpus_index_hash"] = "0" * 64
    (tmp_path / SUBJECTS_FILE).write_text("simulated-a/0123456789abcdef\n")
    match lost:
        case "list":
            (tmp_path / SUBJECTS_FILE).unlink()
            expected = "the export does not list its pretraining subjects (pretraining_subjects.txt is missing)"
        case "export's fingerprint":
            del export[KEY_FINGERPRINT]
            expected = "the export holds no fingerprint of the key"
        case _:
            del corpus.index[KEY_FINGERPRINT]
            expected = "the corpus holds no fingerprint of the key"
    found = overlap(export, tmp_path, corpus)
    assert found.seen is None and expected in found.text
