"""Settings of what works with labels: ``mcsp evaluate``, ``mcsp finetune`` and ``mcsp explain``."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mcsp.config.base import Config, Seconds
from mcsp.schema import Modality

# Enough that features of a recording are stable, few enough for a laptop; ours.
WINDOWS_PER_RECORDING = 4

LabelKind = Literal["classes", "number"]
Depth = Literal["head", "last_layers", "full"]


class LabelledConfig(Config):
    """What evaluation and fine-tuning share: an export, labelled recordings, and the windows cut from them."""

    model_dir: Path = Field(description="an export")
    corpus_dir: Path | None = Field(None, description="a corpus that build_corpus wrote")
    bids_root: Path | None = Field(
        None, description="instead of corpus_dir: a BIDS dataset or a folder of some; a corpus is built in out_dir"
    )
    label: str = Field("diagnosis", description="a column of participants_columns, or task, session, run")
    label_kind: LabelKind | None = Field(
        None, description="null: a number where all values are numbers and more than ten differ, else classes"
    )
    classes: tuple[str, ...] | None = Field(
        None, min_length=2, description="classes to separate, of two the negative first; null: all values found"
    )
    group_column: str | None = Field(
        None, description="a column whose values stay on one side of every fold, within their site: family, say"
    )
    window_seconds: dict[Modality, Seconds] | None = Field(None, description="null: as in pretraining")
    windows_per_recording: int = Field(
        WINDOWS_PER_RECORDING, ge=1, description="evenly spaced; features or logits are averaged over them"
    )
    batch_size: int = Field(32, ge=1, description="samples encoded, or units trained on, at once")
    folds: int = Field(5, ge=2, description="grouped by subject")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.corpus_dir is None) == (self.bids_root is None):
            raise ValueError("expected one of corpus_dir and bids_root")
        return self


class EvaluateConfig(LabelledConfig):
    """``mcsp evaluate``."""

    out_dir: Path = Field(description="results.json and report.html go here, with more_labels in a folder for each")
    more_labels: tuple[str, ...] = Field((), description="further labels of the same people, each evaluated by itself")
    covariates: list[str] | None = Field(
        None, description="columns of the covariates baseline, beside the site; null: age, sex, mean_fd_mm where known"
    )
    protocols: tuple[Literal["kfold", "leave_site_out"], ...] = Field(
        ("kfold", "leave_site_out"),
        min_length=1,
        description="test subjects: new subjects (kfold), subjects of new sites (leave_site_out)",
    )
    run_dir: Path | None = Field(None, description="draws the loss curves of this run into the report")
    seeds: int = Field(5, ge=1, description="repetitions of the folds")
    site_correction: tuple[Literal["centred", "combat"], ...] = Field(
        ("centred",),
        description="rows of features without their site's mean (transductive), or after ComBat (of training folds)",
    )
    label_fractions: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        (0.05, 0.1, 0.25, 0.5, 1.0), description="fractions of the training subjects of the label-efficiency curve"
    )
    permutations: int = Field(20, ge=0, description="draws of a permutation test of the pretrained rows")
    retrieval_size: int = Field(64, ge=2, description="candidates of the cross-modal retrieval")
    save_model: bool = Field(True, description="fit a probe on all units and write classifier/, for mcsp predict")
    retrieval_draws: int = Field(20, ge=1, description="random sets of candidates")


class FinetuneConfig(LabelledConfig):
    """``mcsp finetune``."""

    out_dir: Path = Field(description="results.json and, with save_model, the fine-tuned model go here")
    depth: Depth = Field("last_layers", description="what is trained beside the head: nothing, the last layers, all")
    protocol: Literal["kfold", "leave_site_out"] = Field("kfold", description="who is tested")
    seed: int = Field(0, description="of the order of units, their windows and the inner split")
    max_passes: int = Field(30, ge=1, description="over the training units; each cuts other windows")
    patience: int = Field(5, ge=1, description="passes without a better loss on the inner split before it stops")
    inner_fraction: float = Field(0.2, gt=0, lt=0.5, description="of the training subjects, for early stopping")
    learning_rate: float = Field(1e-3, gt=0, description="of the head")
    encoder_learning_rate: float = Field(1e-4, gt=0, description="of all other trained parameters")
    weight_decay: float = Field(0.05, ge=0, description="on matrices")
    modality_dropout: float = Field(
        0.2, ge=0, lt=1, description="how often a unit of both modalities is trained with one only"
    )
    save_model: bool = Field(True, description="train once more on all units and write classifier/, for mcsp predict")


class ExplainConfig(LabelledConfig):
    """``mcsp explain``."""

    out_dir: Path = Field(description="attribution.json, the pictures and report.html go here")
    finetuned_dir: Path | None = Field(
        None, description="explain the classifier that finetune or evaluate wrote here; null: a probe, per fold"
    )
    windows_per_recording: int = Field(2, ge=1, description="evenly spaced; attributions are averaged over them")
    pairs: int = Field(64, ge=1, description="largest number of pairs of a case and a control per modality")
    steps: int = Field(16, ge=2, description="points on the line from one window to the other")
    seed: int = Field(0, description="of the pairs and of the controls")
    controls: bool = Field(True, description="also maps of a randomised encoder and of shuffled labels")
