"""Settings of pretraining (``mcsp pretrain``), which steps they have logged, and the course of the learning rate."""

import math
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from mcsp.config.base import Config, Seconds
from mcsp.config.model import AugmentationConfig, ModelConfig, ObjectiveConfig
from mcsp.schema import Modality

# What decides the course of the rate, beside its peak.
SETTINGS = ("steps", "schedule_steps", "warmup_steps", "schedule", "decay_steps")
FINAL = 0.1  # of the peak
_COMPARED = 1000


class BatchConfig(Config):
    """Quota of each stream in one global batch; a rank takes an equal slice of each."""

    paired: int = Field(32, ge=0, description="samples with both modalities")
    eeg: int = Field(16, ge=0, description="samples of which the EEG alone is read")
    fmri: int = Field(16, ge=0, description="samples of which the BOLD alone is read")


class HealthConfig(Config):
    """Which steps are left out of a run, and what leads back to a checkpoint; :mod:`mcsp.training.health` explains."""

    spike_window: int = Field(
        128, ge=2, description="number of earlier steps that a step is compared with (at least half of them)"
    )
    spike_factor: float = Field(
        10.0, ge=0, description="robust standard deviations above the median that make a spike; 0 lets spikes count"
    )
    new_level_after: int = Field(5, ge=1, description="spikes within twice as many steps that make a new level")
    rollback_after: int = Field(
        10, ge=1, description="non-finite steps in a row after which the run returns to a checkpoint"
    )
    lost_after: int = Field(
        200,
        ge=0,
        description="steps in a row with a loss above the first ones' that lead back to a checkpoint; 0: none do",
    )
    max_rollbacks: int = Field(3, ge=0, description="largest number of returns to a checkpoint; then the run ends")


class PretrainConfig(Config):
    """``mcsp pretrain``."""

    corpus_dir: Path | str = Field(description="a corpus that build_corpus wrote: a folder or a URL (s3://...)")
    run_dir: Path = Field(description="checkpoints, metrics.jsonl and TensorBoard files go here")
    mirror_dir: Path | str | None = Field(
        None,
        description="finished checkpoints are copied there, a folder or a URL (s3://...), and fetched into a run_dir "
        "that has none",
    )
    init_from: Path | None = Field(
        None, description="a run, checkpoint or export whose weights a new run starts from; ignored once it has its own"
    )
    spatial_start: Literal["random", "corpus"] = Field(
        "random",
        description="first weights of spatial tokens; corpus: the leading directions of the first windows that are "
        "read, in closed form",
    )
    steps: int = Field(1000, ge=1, description="optimizer steps")
    schedule_steps: int | None = Field(
        None, ge=1, description="length of the learning-rate schedule; null: steps. Set it to lengthen a finished run"
    )
    seed: int = Field(0, description="of weights, order and augmentation")
    batch: BatchConfig = Field(BatchConfig(), description="global batch: paired, eeg, fmri samples")
    micro_batches: int = Field(1, ge=1, description="forward passes per rank and step; more of them save memory only")
    window_seconds: dict[Modality, Seconds] = Field({"eeg": 30.0, "fmri": 60.0}, description="length of a window")
    hemodynamic_delay_seconds: float = Field(
        5.0, description="BOLD windows start this much after the EEG of a simultaneous pair"
    )
    site_temperature: float = Field(
        1.0,
        ge=1,
        description="sites are drawn in proportion to size^(1/T): 1 every sample equally often, 1000 every site",
    )
    sites_per_batch: int = Field(
        0,
        ge=0,
        description="number of sites in each part of the batch (paired, eeg, fmri), for many "
        "samples of each; divides each quota. 0: all sites mixed",
    )
    shuffle_shards: int = Field(
        0, ge=0, description="shuffle within groups of this many shards, for remote or slow disks; 0: whole corpus"
    )
    model: ModelConfig = Field(ModelConfig(), description="architecture")
    objective: ObjectiveConfig = Field(ObjectiveConfig(), description="weights of the loss terms")
    augmentation: AugmentationConfig = Field(AugmentationConfig(), description="strengths of the views")
    learning_rate: float = Field(1e-3, gt=0, description="peak")
    warmup_steps: int = Field(20, ge=0, description="linear warm-up, before the schedule")
    schedule: Literal["cosine", "constant", "warmup-stable-decay"] = Field(
        "cosine", description="of the learning rate after the warm-up; the first and the last end at a tenth"
    )
    decay_steps: int | None = Field(
        None, ge=1, description="last steps of warmup-stable-decay, in which it falls; null: a fifth of all"
    )
    ema_decay: float = Field(
        0.0, ge=0, lt=1, description="keep a moving average of the weights, which export --ema takes; 0: none"
    )
    weight_decay: float = Field(0.05, ge=0, description="on matrices only")
    gradient_clipping: float = Field(1.0, ge=0, description="0 switches it off")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 on GPUs that have it, else fp32")
    activation_checkpointing: bool = Field(
        False, description="recompute each attention block in the backward pass: less memory, a third more work"
    )
    compile: bool = Field(False, description="torch.compile each attention block; needs a C++ compiler, ZeRO 0-2")
    deepspeed: Path = Field(
        Path("configs/deepspeed/zero1.json"), description="ZeRO stage and nothing that is said here"
    )
    workers: int = Field(0, ge=0, description="loader processes per rank; 0 reads in the training process")
    max_bad_windows: float = Field(
        0.01,
        ge=0,
        description="ends the run when more windows cannot be read: a fraction of those read since it (re)started, "
        "or from 1 on their number",
    )
    cache_dir: Path | None = Field(None, description="where shards of a remote corpus are kept; null: ~/.cache/mcsp")
    cache_gb: float = Field(100.0, gt=0, description="disk space for shards of a remote corpus on each machine")
    checkpoint_every: int = Field(100, ge=1, description="steps")
    keep_checkpoints: int = Field(3, ge=1, description="older ones are deleted")
    keep_every: int = Field(0, ge=0, description="checkpoints after a multiple of this many steps stay; 0: none do")
    keep_best: str | None = Field(
        None, description="a quantity of the evaluations, such as loss: the checkpoint that is best in it stays as well"
    )
    validate_every: int = Field(
        100,
        ge=0,
        description="steps between evaluations of the validation split, made at the start and end, too; 0: none",
    )
    validation_batches: int = Field(2, ge=1, description="batches of one evaluation, always the same windows and views")
    collapse_after: int = Field(
        3, ge=0, description="evaluations in a row with collapsed embeddings that end the run; 0: never"
    )
    log_every: int = Field(1, ge=1, description="steps per line of metrics.jsonl; the first has one as well")
    profile_steps: tuple[int, int] | None = Field(
        None, description="first and last step of a trace for chrome://tracing in run_dir/profile; null: none"
    )
    trackers: tuple[Literal["wandb", "mlflow"], ...] = Field(
        (), description="other services that get the metrics; their packages must be installed"
    )
    resume: Literal["auto", "never", "must"] = Field(
        "auto", description="auto: continue where run_dir has a checkpoint"
    )
    health: HealthConfig = Field(HealthConfig(), description="steps that are not finite or spike are skipped")
    watchdog_seconds: float = Field(
        600.0, ge=0, description="a rank without progress for this long ends the run with a report; 0: never"
    )

    def is_logged(self, step: int) -> bool:
        """Whether the step, counted from 1, gets a line: those that are evaluated do."""
        return self.is_evaluated(step) or step in (1, self.steps) or step % self.log_every == 0

    def is_evaluated(self, step: int) -> bool:
        """Whether a run looks closely at the step: people set aside, where there are any, norms of parts, memory."""
        every = self.validate_every
        return bool(every) and (step % every == 0 or step in (1, self.steps))


def learning_rate(config: PretrainConfig, applied_steps: int) -> float:
    """The rate of the step after ``applied_steps``.

    ``cosine`` falls in half a wave from the peak to a tenth at the end. ``constant`` stays. ``warmup-stable-decay``
    (MiniCPM, arXiv 2404.06395; Hägele et al., arXiv 2405.18392) stays and then falls linearly to a tenth over the last
    ``decay_steps``, so that a run can be lengthened for as long as it has not begun to fall.
    """
    if applied_steps < config.warmup_steps:
        return config.learning_rate * (applied_steps + 1) / config.warmup_steps
    length = config.schedule_steps or config.steps
    if config.schedule == "constant":
        return config.learning_rate
    if config.schedule == "warmup-stable-decay":
        decay = max(1, length // 5 if config.decay_steps is None else config.decay_steps)
        fallen = min(1.0, max(0.0, (applied_steps - (length - decay)) / decay))
        return config.learning_rate * (1 - (1 - FINAL) * fallen)
    progress = (applied_steps - config.warmup_steps) / max(1, length - config.warmup_steps)
    return config.learning_rate * ((1 + FINAL) / 2 + (1 - FINAL) / 2 * math.cos(math.pi * min(1.0, progress)))


def same_so_far(old: dict[str, Any], new: dict[str, Any], applied_steps: int) -> bool:
    """Whether two dumped configs give steps up to ``applied_steps`` the same course, whatever their peaks."""
    either = [
        PretrainConfig.model_validate(
            {name: config[name] for name in SETTINGS if name in config}
            | {"corpus_dir": "any", "run_dir": "any", "learning_rate": 1.0}
        )
        for config in (old, new)
    ]
    stride = max(1, applied_steps // _COMPARED)
    return all(
        learning_rate(either[0], step) == learning_rate(either[1], step)
        for step in [*range(0, applied_steps, stride), applied_steps - 1]
        if step >= 0
    )
