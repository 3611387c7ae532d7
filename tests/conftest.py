"""What many tests share: one small corpus of two simulated sites, built as real ones are, and one untrained export."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import hypothesis
import pytest
import torch

from mcsp.config import CorpusConfig, EegConfig, FmriConfig, ModelConfig
from mcsp.data_sharding.store.index import INDEX_NAME
from mcsp.encode.pretrained import PretrainedMCSP, from_pretrained
from mcsp.model.mcsp import MCSP
from mcsp.model.weights import write_pretrained

SUBJECT_KEY = sha256(b"a key for tests 35").hexdigest()


# How long an example takes depends on what else the machine does.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


@contextmanager
def folder_of(name: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where one worker of a session builds a corpus while the others wait for it; nobody may change it.

    In a folder that MCSP_TEST_CORPORA names, later sessions find it.
    """
    from filelock import FileLock

    own = tmp_path_factory.getbasetemp()
    common = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    base = Path(os.environ.get("MCSP_TEST_CORPORA", common))
    with FileLock(base / f"{name}.lock"):
        yield base / name


@pytest.fixture(scope="session")
def corpus_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two simulated paired sites of 16 subjects and 100 s; labels in column `diagnosis`."""
    from mcsp.data_sharding.build.corpus import build_corpus
    from mcsp.data_sharding.demo.sites import SIMULATED_A, SIMULATED_B, write_simulated

    with folder_of("simulated", tmp_path_factory) as folder, pytest.MonkeyPatch.context() as patch:
        if (folder / "corpus" / INDEX_NAME).is_file():
            return folder / "corpus"
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


PREPROCESSING = {
    "units": {"eeg": "uV", "fmri": "percent"},
    "window_seconds": {"eeg": 10.0, "fmri": 30.0},
    "min_seconds": CorpusConfig.model_fields["min_seconds"].default,
    "cleaning": {"eeg": {**EegConfig().dump(), "reference": "average"}, "fmri": FmriConfig().dump()},
}


@pytest.fixture(scope="session")
def export_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = MCSP(ModelConfig()).eval()
    folder = tmp_path_factory.mktemp("export") / "model"
    write_pretrained(model, folder, PREPROCESSING)
    return folder


@pytest.fixture(scope="session")
def pretrained(export_dir: Path) -> PretrainedMCSP:
    return from_pretrained(export_dir)
