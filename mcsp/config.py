"""Configuration: pydantic models are the schema, YAML the values, ``--config FILE key.sub=value`` the command line.

A YAML file holds only what differs from the defaults below. Unknown keys are refused with the list of known ones.
Numbers without a source beside them are choices of ours.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mcsp.schema import DOMAINS, MODALITIES, Domain, Modality


class Config(BaseModel):
    """Frozen values, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, values: Any) -> Any:
        """A mapping keeps the defaults that it does not name: ``window_seconds.eeg=4`` leaves fMRI as it was."""
        for name, known in cls.model_fields.items():
            if isinstance(values, dict) and isinstance(known.default, dict) and isinstance(values.get(name), dict):
                values = {**values, name: {**known.default, **values[name]}}
        return values

    @classmethod
    def parse(cls, values: dict[str, Any], source: str) -> Self:
        """Validate ``values``; raise ``ValueError`` with one line that names ``source`` and what was expected."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ValueError(f"{source}: " + "; ".join(_explain(cls, e) for e in error.errors())) from None

    @classmethod
    def load(cls, path: Path | None, overrides: Sequence[str] = ()) -> Self:
        """Read a YAML file (or only the defaults) and apply ``key.sub=value`` overrides, values in YAML syntax."""
        values: Any = {}
        if path is not None:
            try:
                values = yaml.safe_load(Path(path).read_text()) or {}
            except OSError as error:
                raise ValueError(f"{path}: cannot read the config file ({error.strerror})") from None
            except (yaml.YAMLError, UnicodeDecodeError) as error:
                raise ValueError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
            if not isinstance(values, dict):
                raise ValueError(f"{path}: expected a mapping of keys to values, found {type(values).__name__}")
        for override in overrides:
            key, equals, value = override.partition("=")
            if not equals:
                raise ValueError(f"override {override!r}: expected key=value or key.sub=value")
            try:
                _set(values, key.split("."), yaml.safe_load(value), override)
            except yaml.YAMLError as error:
                raise ValueError(f"override {override!r}: not valid YAML ({' '.join(str(error).split())})") from None
        return cls.parse(values, str(path) if path is not None else "command line")

    def dump(self) -> dict[str, Any]:
        """The resolved values as plain JSON types."""
        return self.model_dump(mode="json")


def _set(values: dict[str, Any], keys: list[str], value: Any, override: str) -> None:
    for key in keys[:-1]:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise ValueError(f"override {override!r}: {key!r} holds a value, not a section")
    values[keys[-1]] = value


def _explain(model: type[BaseModel], error: Any) -> str:
    """One clause for one pydantic error, with the known keys where a key is unknown."""
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] != "extra_forbidden":
        return f"{where or 'config'}: {error['msg']} (found {error.get('input')!r:.80})"
    known: type[BaseModel] = model
    for part in error["loc"][:-1]:
        annotation = known.model_fields[part].annotation if part in known.model_fields else None
        arguments = [annotation, *getattr(annotation, "__args__", ())]
        known = next((a for a in arguments if isinstance(a, type) and issubclass(a, BaseModel)), known)
    return f"unknown key {where!r}; known keys: {', '.join(sorted(known.model_fields))}"


def parse_command_line(
    model: type[Config], description: str, argv: Sequence[str] | None = None
) -> tuple[Any, argparse.Namespace]:
    """``--config FILE key=value ...``: the whole command line of every launcher that has a config.

    Exits with status 2 and one line on bad input.
    """
    fields = "\n".join(f"  {name}: {field.description or ''}" for name, field in model.model_fields.items())
    parser = argparse.ArgumentParser(
        description=description,
        epilog=f"keys (see mcsp/config.py for defaults):\n{fields}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, help="YAML file with the values that differ from the defaults")
    parser.add_argument("--address", help="address of a running Ray cluster (corpus building only)")
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)  # added by the deepspeed launcher
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values that take precedence over the file")
    arguments = parser.parse_args(argv)
    try:
        return model.load(arguments.config, arguments.overrides), arguments
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


# ---------------------------------------------------------------------------------------------------------
# Corpus


class EegConfig(Config):
    """EEG cleaning; 0.5-75 Hz at 200 Hz as in LaBraM (arXiv 2405.18765) and CBraMod (arXiv 2412.07236)."""

    sfreq: float = Field(200.0, gt=0, description="Hz after resampling")
    highpass_hz: float = Field(0.5, ge=0)
    lowpass_hz: float = Field(75.0, gt=0)
    max_amplitude_uv: float = Field(5000.0, gt=0, description="median channel amplitude above this means a wrong unit")
    min_amplitude_uv: float = Field(0.1, ge=0, description="median channel amplitude below this means a wrong unit")


class FmriConfig(Config):
    """BOLD cleaning; values become percent signal change."""

    label_image: Path | None = Field(
        None, description="integer NIfTI parcellation for 4-D BOLD images without their own"
    )
    parcellation: str | None = Field(None, description="seg- of the time series to read; null: the first by name")
    detrend: bool = True


class SiteConfig(Config):
    """One BIDS dataset."""

    path: Path
    simulated: bool | None = Field(None, description="null: read from dataset_description.json")
    label_image: Path | None = Field(None, description="overrides fmri.label_image for this site")


class CorpusConfig(Config):
    """``launchers/build_corpus.py``."""

    bids_root: Path | None = Field(
        None, description="folder whose BIDS sub-folders are the sites, unless `sites` lists them"
    )
    out_dir: Path = Field(description="where the corpus is written")
    sites: dict[str, SiteConfig] = Field({}, description="site name -> {path, simulated, label_image}")
    participants_columns: list[str] = Field([], description="columns of participants.tsv that go along")
    family_column: str | None = Field(None, description="column of participants.tsv whose values stay in one split")
    eeg: EegConfig = Field(EegConfig(), description="EEG cleaning")
    fmri: FmriConfig = Field(FmriConfig(), description="BOLD cleaning")
    min_seconds: dict[Modality, float] = Field(
        {"eeg": 10.0, "fmri": 30.0}, description="shorter recordings are rejected"
    )
    samples_per_shard: int = Field(64, ge=1, description="samples (subject-sessions) per tar")
    split_fractions: tuple[float, float, float] = Field((0.8, 0.1, 0.1), description="train, validation, test")
    seed: int = Field(0, description="of the split")
    workers: int | None = Field(None, ge=1, description="Ray CPUs of a local Ray; null: all cores")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if abs(sum(self.split_fractions) - 1) > 1e-6 or min(self.split_fractions) < 0:
            raise ValueError(f"split_fractions: expected three fractions that sum to 1, found {self.split_fractions}")
        if self.bids_root is None and not self.sites:
            raise ValueError("expected bids_root=DIR or a list of sites")
        return self


# ---------------------------------------------------------------------------------------------------------
# Model, objective, augmentation


class ModelConfig(Config):
    """Architecture; it travels inside every export."""

    size: Literal["nano", "small", "base", "large", "huge"] = "nano"
    modalities: tuple[Modality, ...] = Field(MODALITIES, min_length=1)
    domains: tuple[Domain, ...] = Field(DOMAINS, min_length=1)
    projection_dim: int = Field(128, ge=8)
    eeg_grid_hz: float = Field(200.0, gt=0, description="EEG is interpolated to this rate before patching")
    fmri_grid_hz: float = Field(1.0, gt=0, description="BOLD is interpolated to this rate before patching")
    eeg_patch_seconds: float = Field(1.0, gt=0, description="1 s as in LaBraM")
    fmri_patch_seconds: float = Field(4.0, gt=0)
    eeg_anchors: int = Field(32, ge=4)
    fmri_anchors: int = Field(100, ge=4)


class ObjectiveConfig(Config):
    """Weights of design section 6: L = sum_m L_cross-domain + alpha * sum_d L_cross-modal."""

    alpha: float = Field(1.0, ge=0, description="weight of the cross-modal loss")
    beta: float = Field(0.5, ge=0, description="weight of distillation inside the cross-modal loss")
    gamma: float = Field(0.5, ge=0, description="weight of convergence inside the cross-modal loss")
    cross_domain: float = Field(1.0, ge=0, description="weight of the contrast between domains of one modality")
    temperature: float = Field(0.1, gt=0, description="initial, learned per term; 0.1 as in SimCLR (arXiv 2002.05709)")
    distillation_temperature: float = Field(0.1, gt=0)
    negatives: Literal["all", "within_site"] = "all"


class AugmentationConfig(Config):
    """Probabilities and strengths of the views, per domain."""

    channel_dropout: float = Field(0.3, ge=0, lt=1, description="spatial: largest fraction of channels dropped")
    position_jitter_mm: float = Field(3.0, ge=0, description="spatial: standard deviation")
    time_mask: float = Field(0.2, ge=0, lt=1, description="temporal: largest fraction of the window masked")
    amplitude_jitter: float = Field(0.1, ge=0, description="temporal: standard deviation of log gain")
    noise: float = Field(0.1, ge=0, description="temporal: noise relative to each channel's standard deviation")
    band_mask: float = Field(0.15, ge=0, lt=1, description="spectral: largest fraction of the band attenuated")
    tilt: float = Field(0.2, ge=0, description="spectral: standard deviation of the exponent change of 1/f")


# ---------------------------------------------------------------------------------------------------------
# Pretraining and evaluation


class BatchConfig(Config):
    """Quota of each stream in one global batch; a rank takes an equal slice of each."""

    paired: int = Field(32, ge=0)
    eeg: int = Field(16, ge=0)
    fmri: int = Field(16, ge=0)


class PretrainConfig(Config):
    """``launchers/pretrain.py``."""

    corpus_dir: Path = Field(description="a corpus that build_corpus wrote")
    run_dir: Path = Field(description="checkpoints, metrics.jsonl and TensorBoard files go here")
    steps: int = Field(1000, ge=1, description="optimizer steps")
    seed: int = Field(0, description="of weights, order and augmentation")
    batch: BatchConfig = Field(BatchConfig(), description="global batch: paired, eeg, fmri samples")
    micro_batches: int = Field(1, ge=1, description="forward passes per rank and step; more of them save memory only")
    window_seconds: dict[Modality, float] = Field({"eeg": 30.0, "fmri": 60.0}, description="length of a window")
    hemodynamic_delay_seconds: float = Field(
        5.0, description="BOLD windows start this much after the EEG of a simultaneous pair"
    )
    model: ModelConfig = Field(ModelConfig(), description="architecture")
    objective: ObjectiveConfig = Field(ObjectiveConfig(), description="weights of the loss terms")
    augmentation: AugmentationConfig = Field(AugmentationConfig(), description="strengths of the views")
    learning_rate: float = Field(1e-3, gt=0, description="peak")
    warmup_steps: int = Field(20, ge=0, description="linear warm-up, then cosine decay to a tenth")
    weight_decay: float = Field(0.05, ge=0, description="on matrices only")
    gradient_clipping: float = Field(1.0, ge=0, description="0 switches it off")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 on GPUs that have it, else fp32")
    deepspeed: Path = Field(
        Path("configs/deepspeed/zero1.json"), description="ZeRO stage and nothing that is said here"
    )
    workers: int = Field(0, ge=0, description="loader processes per rank; 0 reads in the training process")
    checkpoint_every: int = Field(100, ge=1, description="steps")
    keep_checkpoints: int = Field(3, ge=1, description="older ones are deleted")
    log_every: int = Field(1, ge=1, description="steps per line of metrics.jsonl")
    resume: Literal["auto", "never", "must"] = Field(
        "auto", description="auto: continue where run_dir has a checkpoint"
    )


class EvaluateConfig(Config):
    """``launchers/evaluate.py``."""

    model_dir: Path = Field(description="an export")
    corpus_dir: Path = Field(description="a corpus that build_corpus wrote")
    out_dir: Path = Field(description="results.json and report.html go here")
    label: str = Field("diagnosis", description="a column that participants_columns let through, two classes")
    run_dir: Path | None = Field(None, description="draws the loss curves of this run into the report")
    window_seconds: dict[Modality, float] | None = Field(None, description="null: as in pretraining")
    windows_per_recording: int = Field(4, ge=1, description="evenly spaced; features are averaged over them")
    folds: int = Field(5, ge=2, description="grouped by subject")
    seeds: int = Field(5, ge=1, description="repetitions of the folds")
    retrieval_size: int = Field(64, ge=2, description="candidates of the cross-modal retrieval")
    retrieval_draws: int = Field(20, ge=1, description="random sets of candidates")
    batch_size: int = Field(32, ge=1, description="samples encoded at once")
