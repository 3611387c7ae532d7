"""Settings of the evaluation (``mcsp evaluate``)."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from mcsp.config.base import Config
from mcsp.schema import Modality

# Enough that features of a recording are stable, few enough for a laptop; ours.
WINDOWS_PER_RECORDING = 4


LabelKind = Literal["classes", "number"]


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
    window_seconds: dict[Modality, float] | None = Field(None, description="null: as in pretraining")
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
    label_fractions: tuple[float, ...] = Field(
        (0.05, 0.1, 0.25, 0.5, 1.0), description="fractions of the training subjects of the label-efficiency curve"
    )
    permutations: int = Field(20, ge=0, description="draws of a permutation test of the pretrained rows")
    retrieval_size: int = Field(64, ge=2, description="candidates of the cross-modal retrieval")
    save_model: bool = Field(True, description="fit a probe on all units and write classifier/, for mcsp predict")
    retrieval_draws: int = Field(20, ge=1, description="random sets of candidates")
