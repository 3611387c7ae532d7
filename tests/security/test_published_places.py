"""Where something was made does not leave with it: folders of settings, paths and hosts in results and programs.

Results of evaluation, fine-tuning and explanation and exported programs are searched where their own tests make them.
"""

from pathlib import Path

from mcsp.config import CorpusConfig, EvaluateConfig
from mcsp.data_sharding.build.plan import public_config


def test_published_settings_have_names_and_no_folders(tmp_path: Path) -> None:
    config = EvaluateConfig(model_dir=tmp_path / "weights", corpus_dir=tmp_path / "c", out_dir=tmp_path, run_dir=None)
    published = config.published()
    assert published["model_dir"] == "weights" and published["run_dir"] is None and str(tmp_path) not in str(published)
    assert {k: v for k, v in published.items() if "_dir" not in k} == {
        k: v for k, v in config.dump().items() if "_dir" not in k
    }
    corpus = CorpusConfig(bids_root=tmp_path, out_dir="s3://secret-bucket/corpus", private_dir=tmp_path / "private")
    assert corpus.published()["out_dir"] == "corpus"
    assert str(tmp_path) not in str(public_config(corpus)) and "secret-bucket" not in str(public_config(corpus))
