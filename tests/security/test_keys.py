"""Attacks on pseudonyms: keys that are known or can be guessed, and hashes that tell more than who is the same person.

Covers: data_sharding/build/pseudonyms.py, mcsp/evaluate/units.py
"""

import re
import secrets
from pathlib import Path

import pytest

from mcsp.config import CorpusConfig, EvaluateConfig, ModelConfig
from mcsp.data_sharding.bids.write import write_eeg, write_json
from mcsp.data_sharding.build.corpus import build_corpus, ray_session
from mcsp.data_sharding.build.plan import make_plan
from mcsp.data_sharding.build.pseudonyms import subject_hash, subject_key
from mcsp.encode.pretrained import PretrainedMCSP
from mcsp.evaluate.units import KEY_NAME, open_corpus
from mcsp.schema import KEY_VARIABLE
from tests.conftest import PREPROCESSING
from tests.data_sharding.conftest import CHANNELS, DESCRIPTION, eeg_uv

ROOT = Path(__file__).parents[2]


def published_keys() -> dict[str, str]:
    """Every key that a file of this repository would build a corpus under, by where it stands."""
    found = {}
    files = [
        ROOT / "Makefile",
        *(f for room in ("benchmarks", "examples", "docs", "mcsp") for f in (ROOT / room).rglob("*")),
    ]
    for file in files:
        if file.suffix in (".py", ".md", "") and file.is_file():
            text = file.read_text(errors="replace")  # a built site has files that are no text
            made = [eval(code) for code in re.findall(r'b"[^"]+"\.hex\(\)\.ljust\(64, "0"\)', text)]
            for key in [*made, *re.findall(r"KEY.*\b([0-9a-f]{64})\b", text)]:
                found[f"{file.relative_to(ROOT)}: {key[:8]}"] = key
    return found


def test_public_keys_are_refused_unless_the_configuration_allows_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = published_keys()
    assert {"mcsp/commands/demo.py", "benchmarks/abide.py", "benchmarks/corpus_scale.py"} <= {
        where.split(":")[0] for where in keys
    }
    config = CorpusConfig(bids_root=tmp_path, out_dir=tmp_path / "out")
    for key in [*keys.values(), "0" * 64, "8f0a" * 16, bytes(range(14)).hex().ljust(64, "7")]:
        monkeypatch.setenv(KEY_VARIABLE, key)
        with pytest.raises(ValueError, match=r"is text or a pattern, as the public keys .* allow_public_key=true$"):
            build_corpus(config)
        assert subject_key(config.model_copy(update={"allow_public_key": True})) == key.encode()
    for _ in range(1000):
        monkeypatch.setenv(KEY_VARIABLE, secrets.token_hex(32))
        subject_key(config)


def test_only_the_demo_and_benchmarks_allow_a_public_key() -> None:
    allowed = [f for f in (ROOT / "configs").rglob("*.yaml") if "allow_public_key: true" in f.read_text()]
    assert allowed == [ROOT / "configs/corpus/demo.yaml"]
    assert not CorpusConfig.model_fields["allow_public_key"].default


@pytest.mark.parametrize("key", ["", "correct horse battery staple", "0f" * 31, "0f" * 33, "xy" * 32, f" {'0f' * 31} "])
def test_a_key_is_32_bytes_as_64_hexadecimal_digits(key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, key)
    with pytest.raises(ValueError, match=r"^environment: MCSP_SUBJECT_KEY .*; make one with: .*rand -hex 32\)$"):
        build_corpus(CorpusConfig(bids_root=tmp_path, out_dir=tmp_path / "out"))


def test_two_people_seen_on_one_day_share_nothing_and_hashes_have_128_bits(tmp_path: Path) -> None:
    for subject in ("1", "2"):
        folder = tmp_path / "a" / f"sub-{subject}" / "ses-20190504" / "eeg"
        folder.mkdir(parents=True)
        (folder / f"sub-{subject}_ses-20190504_task-rest_eeg.edf").touch()
    write_json(tmp_path / "a" / "dataset_description.json", DESCRIPTION)
    plan = make_plan(CorpusConfig(bids_root=tmp_path, out_dir=tmp_path / "out"), secrets.token_hex(32).encode())
    samples = [sample for shard in plan.shards for sample in shard.samples]
    assert len({sample.session for sample in samples}) == 2
    assert all(re.fullmatch("[a-p]{32}", s.session) and re.fullmatch("[0-9a-f]{32}", s.subject) for s in samples)


def test_an_evaluation_of_bids_folders_hashes_under_a_key_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    root = tmp_path / "clinic"
    write_json(root / "dataset_description.json", DESCRIPTION)
    write_eeg(root, "1", "rest", eeg_uv(), CHANNELS, {"SamplingFrequency": 250, "PowerLineFrequency": 50})
    model = PretrainedMCSP(ModelConfig(domains=("temporal",)))
    model.preprocessing = PREPROCESSING
    keys, subjects = set(), set()
    with ray_session(workers=1):
        for name in ("first", "second"):
            out = tmp_path / name
            corpus = open_corpus(EvaluateConfig(model_dir=tmp_path, bids_root=root, out_dir=out), out, model)
            keys.add((out / KEY_NAME).read_text())
            subjects.add(corpus.recordings[0].subject)
            assert corpus.recordings[0].subject == subject_hash((out / KEY_NAME).read_text().encode(), "clinic", "1")
    assert len(keys) == len(subjects) == 2
    assert subject_hash(b"0" * 32, "clinic", "1") not in {s for c in subjects for s in (c, c[:16])}
