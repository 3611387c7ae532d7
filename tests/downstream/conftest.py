"""An export with the preprocessing of a real one, of a model that nobody trained."""

from pathlib import Path

import pytest
import torch

from mcsp.config import CorpusConfig, EegConfig, FmriConfig, ModelConfig
from mcsp.model.mcsp import MCSP
from mcsp.model.pretrained import PretrainedMCSP, from_pretrained, write_pretrained

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
