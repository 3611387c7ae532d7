"""One small corpus for all tests that need one: two simulated sites, built the way a real corpus is built."""

from dataclasses import replace
from pathlib import Path

import pytest

SUBJECT_KEY = "a key for tests, not a secret"


@pytest.fixture(scope="session")
def corpus_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two simulated paired sites of 16 subjects and 100 s; labels in column `diagnosis`."""
    from mcsp.config import CorpusConfig
    from mcsp.data_sharding.corpus import build_corpus
    from mcsp.data_sharding.simulated_sites import SIMULATED_A, SIMULATED_B, write_simulated

    folder = tmp_path_factory.mktemp("simulated")
    for site in (SIMULATED_A, SIMULATED_B):
        write_simulated(folder / "bids" / site.name, replace(site, n_subjects=16, seconds=100.0))
    config = CorpusConfig(
        bids_root=folder / "bids",
        out_dir=folder / "corpus",
        participants_columns=["diagnosis"],
        split_fractions=(0.75, 0.0, 0.25),
        samples_per_shard=12,
        seed=14,  # gives each site 12 subjects for training and 4 for testing
        workers=2,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MCSP_SUBJECT_KEY", SUBJECT_KEY)
        build_corpus(config)
    return folder / "corpus"


@pytest.fixture
def corpus_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The key of the subject hashes in ``corpus_dir``."""
    monkeypatch.setenv("MCSP_SUBJECT_KEY", SUBJECT_KEY)


@pytest.fixture
def pretrain_overrides(corpus_dir: Path, tmp_path: Path) -> list[str]:
    """A run of a few quick steps on the small corpus, as key=value overrides."""
    return [
        f"corpus_dir={corpus_dir}",
        f"run_dir={tmp_path / 'run'}",
        "steps=6",
        "batch={paired: 4, eeg: 0, fmri: 0}",
        "window_seconds={eeg: 10, fmri: 30}",
        "checkpoint_every=2",
        "warmup_steps=2",
    ]
