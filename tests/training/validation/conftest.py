from pathlib import Path

import pytest

from mcsp.data_sharding.store.index import INDEX_NAME
from tests.conftest import SUBJECT_KEY, folder_of


@pytest.fixture(scope="session")
def split_corpus_dir(corpus_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recordings of ``corpus_dir``, with a quarter of the people in the validation split."""
    from mcsp.config import CorpusConfig
    from mcsp.data_sharding.build.corpus import build_corpus

    with folder_of("split", tmp_path_factory) as folder, pytest.MonkeyPatch.context() as patch:
        if (folder / "corpus" / INDEX_NAME).is_file():
            return folder / "corpus"
        config = CorpusConfig(
            bids_root=corpus_dir.parent / "bids",
            out_dir=folder / "corpus",
            split_fractions=(0.6, 0.4, 0.0),
            samples_per_shard=12,
            workers=2,
        )
        patch.setenv("MCSP_SUBJECT_KEY", SUBJECT_KEY)
        build_corpus(config)
    return folder / "corpus"


@pytest.fixture(scope="session")
def split_overrides(split_corpus_dir: Path) -> list[str]:
    return [
        f"corpus_dir={split_corpus_dir}", "batch={paired: 8, eeg: 0, fmri: 0}", "window_seconds={eeg: 8, fmri: 40}",
        "warmup_steps=2", "validate_every=2", "checkpoint_every=2", "keep_checkpoints=9",
    ]  # fmt: skip
