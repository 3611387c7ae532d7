"""Settings of an ablation."""

import re
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from mcsp.config.base import Config
from mcsp.config.evaluate import EvaluateConfig
from mcsp.config.pretrain import PretrainConfig

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")


class AblateConfig(Config):
    """Short pretraining runs that differ in what their names say, scored in one way."""

    corpus_dir: Path = Field(description="a corpus that build_corpus wrote; variants train on it and are scored on it")
    out_dir: Path = Field(description="a folder per variant and seed, ablation.json and ablation.html go here")
    pretrain: Path | None = Field(None, description="YAML file of pretraining that all variants share; null: defaults")
    overrides: list[str] = Field([], description="key=value of pretraining that all variants share")
    variants: dict[str, list[str]] = Field(min_length=1, description="name -> key=value of pretraining that differ")
    base: str = Field("base", description="the variant that the others are compared with")
    seeds: list[int] = Field([0, 1], min_length=1, description="every variant runs once for each")
    at_once: int = Field(1, ge=1, description="runs at the same time, each a process of its own")
    label: str = Field("diagnosis", description="as in evaluation")
    windows_per_recording: int = Field(4, ge=1, description="as in evaluation")
    few_labels: float = Field(0.1, gt=0, le=1, description="fraction of the training subjects of the few-label score")
    few_label_draws: int = Field(5, ge=1, description="which subjects these are, drawn so often")
    only: str | None = Field(None, description="one run, variant/seed: make it and write its result, no table")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.base not in self.variants:
            raise ValueError(f"base={self.base}: expected one of the variants {list(self.variants)}")
        bad = [name for name in self.variants if not _NAME.fullmatch(name)]
        if bad:
            raise ValueError(f"variants: names become folders: expected letters, digits and _.+-, found {bad}")
        if self.only is not None and self.only not in self.runs():
            raise ValueError(f"only={self.only}: expected one of {self.runs()}")
        for name in self.variants:
            self.pretraining(name, 0)
        return self

    def runs(self) -> list[str]:
        """Every ``variant/seed``, seed after seed, so that an early stop leaves whole rows of the first seeds."""
        return [f"{name}/{seed}" for seed in self.seeds for name in self.variants]

    def pretraining(self, variant: str, seed: int) -> PretrainConfig:
        """The pretraining of one run; ``ValueError`` for overrides that it does not know."""
        folder = self.out_dir / variant / str(seed)
        own = [f"corpus_dir={self.corpus_dir}", f"run_dir={folder / 'run'}", f"seed={seed}", "keep_checkpoints=1"]
        return PretrainConfig.load(self.pretrain, [*self.overrides, *self.variants[variant], *own])

    def evaluation(self, pretraining: PretrainConfig) -> EvaluateConfig:
        """How a run is scored: windows as in its pretraining."""
        return EvaluateConfig(
            model_dir=pretraining.run_dir,
            corpus_dir=self.corpus_dir,
            out_dir=pretraining.run_dir,
            label=self.label,
            window_seconds=pretraining.window_seconds,
            windows_per_recording=self.windows_per_recording,
        )
