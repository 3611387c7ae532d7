from pathlib import Path

import pytest

from tests.conftest import SUBJECT_KEY


@pytest.fixture(scope="session")
def split_corpus_dir(corpus_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recordings of ``corpus_dir``, with a quarter of the people in the validation split."""
    from mcsp.config import CorpusConfig
    from mcsp.data_sharding.build.corpus import build_corpus

    out = tmp_path_factory.mktemp("split") / "corpus"
    config = CorpusConfig(
        bids_root=corpus_dir.parent / "bids",
        out_dir=out,
        split_fractions=(0.6, 0.4, 0.0),
        samples_per_shard=12,
        workers=2,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MCSP_SUBJECT_KEY", SUBJECT_KEY)
        build_corpus(config)
    return out


@pytest.fixture(scope="session")
def split_overrides(split_corpus_dir: Path) -> list[str]:
    return [
        f"corpus_dir={split_corpus_dir}", "batch={paired: 8, eeg: 0, fmri: 0}", "window_seconds={eeg: 8, fmri: 40}",
        "warmup_steps=2", "validate_every=2", "checkpoint_every=2", "keep_checkpoints=9",
    ]  # fmt: skip
