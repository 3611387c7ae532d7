"""Settings of fine-tuning (``mcsp finetune``)."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from mcsp.config.evaluate import LabelledConfig

Depth = Literal["head", "last_layers", "full"]


class FinetuneConfig(LabelledConfig):
    """``mcsp finetune``."""

    out_dir: Path = Field(description="results.json and, with save_model, the fine-tuned model go here")
    depth: Depth = Field("last_layers", description="what is trained beside the head: nothing, the last layers, all")
    protocol: Literal["kfold", "leave_site_out"] = Field("kfold", description="who is tested")
    seed: int = Field(0, description="of folds, heads, windows and the inner split")
    max_passes: int = Field(30, ge=1, description="over the training units; each cuts other windows")
    patience: int = Field(5, ge=1, description="passes without a better loss on the inner split before it stops")
    inner_fraction: float = Field(0.2, gt=0, lt=0.5, description="of the training subjects, for early stopping")
    learning_rate: float = Field(1e-3, gt=0, description="of the head")
    encoder_learning_rate: float = Field(1e-4, gt=0, description="of whatever else is trained")
    weight_decay: float = Field(0.05, ge=0, description="on matrices")
    modality_dropout: float = Field(
        0.2, ge=0, lt=1, description="how often a unit of both modalities is shown with one, so that one suffices"
    )
    save_model: bool = Field(True, description="train once more on all units and write classifier/, for mcsp predict")
