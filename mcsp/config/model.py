"""Architecture, objective and views: what decides a model beside its data."""

from typing import Literal

from pydantic import Field

from mcsp.config.base import Config
from mcsp.schema import DOMAINS, MODALITIES, Domain, Modality


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
