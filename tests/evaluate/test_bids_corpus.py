"""BIDS folders become a corpus with the export's own cleaning, once."""

from pathlib import Path

import numpy as np
import pytest

from mcsp.config import EvaluateConfig, ModelConfig
from mcsp.data_sharding.store.reader import Corpus
from mcsp.encode.pretrained import PretrainedMCSP
from mcsp.evaluate.evaluate import find_overlap
from mcsp.evaluate.units import KEY_NAME, open_corpus, read_labels
from mcsp.export.export import pretraining_subjects
from mcsp.model.weights import SUBJECTS_FILE
from mcsp.schema import KEY_FINGERPRINT, KEY_VARIABLE


def model(cleaning: dict) -> PretrainedMCSP:
    model = PretrainedMCSP(ModelConfig(domains=("temporal",)))
    model.preprocessing = {"cleaning": cleaning}
    return model


def test_a_bids_dataset_is_cleaned_as_the_pretraining_corpus_was(
    corpus_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    reference = Corpus(corpus_dir)
    cleaning = {m: {**reference.index["config"][m], "reference": "average"} for m in ("eeg", "fmri")}
    config = EvaluateConfig(model_dir=tmp_path, bids_root=corpus_dir.parent / "bids" / "simulated-a", out_dir=tmp_path)
    columns = ["mean_fd", "session"]
    corpus = open_corpus(config, tmp_path, model(cleaning), columns)
    assert np.bincount(read_labels(corpus, "diagnosis").y_N).tolist() == [8, 8]
    assert {r.split for r in corpus.recordings} == {"test"}
    expected = {}
    for r in reference.recordings:
        if r.site == "simulated-a" and r.modality == "fmri":
            expected[reference.read_window(r, 0, 20).x_TC.tobytes()] = r.participant
    own = [r for r in corpus.recordings if r.modality == "fmri"]
    assert {corpus.read_window(r, 0, 20).x_TC.tobytes(): r.participant for r in own} == expected
    (tmp_path / SUBJECTS_FILE).write_text("".join(f"{s}\n" for s in pretraining_subjects(reference)))
    kept = {KEY_FINGERPRINT: reference.index[KEY_FINGERPRINT], "corpus_index_hash": reference.index_hash}
    people = [f"{r.site}/{r.subject}" for r in own]
    assert find_overlap(kept, tmp_path, corpus, people).seen is None, "the same people, under another key"
    assert (tmp_path / KEY_NAME).stat().st_mode & 0o777 == 0o600
    before = (tmp_path / "corpus" / "index.json").stat().st_mtime_ns
    again = open_corpus(config, tmp_path, model(cleaning), columns)
    assert again.index_hash == corpus.index_hash
    assert (tmp_path / "corpus" / "index.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "bids: no EEG or fMRI recordings found"),
        ("participant_id\tdiagnosis\nsub-1\tMüller\n".encode("latin-1"), r"participants\.tsv: expected text in UTF-8"),
    ],
)
def test_a_table_of_people_that_is_empty_or_of_another_encoding_is_named(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "bids").mkdir()
    (tmp_path / "bids" / "dataset_description.json").write_text("{}")
    (tmp_path / "bids" / "participants.tsv").write_bytes(content)
    config = EvaluateConfig(model_dir=tmp_path, bids_root=tmp_path / "bids", out_dir=tmp_path)
    with pytest.raises(ValueError, match=message):
        open_corpus(config, tmp_path / "out", model({}), ["diagnosis"])


@pytest.mark.parametrize("given", [{}, {"corpus_dir": Path("a"), "bids_root": Path("b")}])
def test_one_source_of_recordings_is_expected(given: dict, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected one of corpus_dir and bids_root"):
        EvaluateConfig(model_dir=tmp_path, out_dir=tmp_path, **given)
