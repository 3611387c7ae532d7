"""Settings of explanations (``mcsp explain``)."""

from pathlib import Path

from pydantic import Field

from mcsp.config.evaluate import LabelledConfig


class ExplainConfig(LabelledConfig):
    """``mcsp explain``."""

    out_dir: Path = Field(description="attribution.json, the pictures and report.html go here")
    finetuned_dir: Path | None = Field(
        None, description="explain the classifier that finetune or evaluate wrote here; null: a probe, per fold"
    )
    windows_per_recording: int = Field(2, ge=1, description="evenly spaced; attributions are averaged over them")
    pairs: int = Field(64, ge=1, description="at most so many pairs of a case and a control per modality")
    steps: int = Field(16, ge=2, description="points on the line from one window to the other")
    seed: int = Field(0, description="of the pairs and of the controls")
    controls: bool = Field(True, description="maps of a randomised encoder and of shuffled labels beside")
