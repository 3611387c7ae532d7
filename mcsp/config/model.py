"""Settings of architecture, objective and views."""

from typing import Annotated, Literal

from pydantic import Field, FiniteFloat

from mcsp.config.base import Config
from mcsp.schema import DOMAINS, MODALITIES, Domain, Modality

Skip = Literal["connectivity", "root", "tangent", "coherence", "band_power", "relative_power"]
SpatialForm = Literal["logarithm", "root"]
Positions = Annotated[tuple[tuple[FiniteFloat, FiniteFloat, FiniteFloat], ...], Field(max_length=1024)]
# Connectivity and its logarithm are off: beside the root they only make features longer.
SKIPS: tuple[Skip, ...] = ("root", "coherence", "band_power", "relative_power")


class ModelConfig(Config):
    """Architecture; it travels inside every export, also a stranger's: bounds keep what it takes within a machine."""

    size: Literal["nano", "small", "base", "large", "huge"] = Field(
        "nano", description="width and depth of the encoders: about 1, 25, 100, 300 million and 1 billion parameters"
    )
    modalities: tuple[Modality, ...] = Field(MODALITIES, min_length=1, max_length=2, description="that have encoders")
    domains: tuple[Domain, ...] = Field(
        DOMAINS, min_length=1, max_length=3, description="of each modality that have an encoder"
    )
    projection_dim: int = Field(128, ge=8, le=8192, description="width of z, which the contrast compares")
    eeg_grid_hz: float = Field(200.0, gt=0, le=2000, description="EEG is interpolated to this rate before patching")
    fmri_grid_hz: float = Field(1.0, gt=0, le=20, description="BOLD is interpolated to this rate before patching")
    eeg_patch_seconds: float = Field(1.0, ge=0.05, le=60, description="1 s as in LaBraM")
    fmri_patch_seconds: float = Field(4.0, ge=0.5, le=600, description="length of a temporal patch of BOLD")
    eeg_anchors: int = Field(
        32, ge=4, le=1024, description="anchor positions on the scalp that EEG channels are projected onto"
    )
    fmri_anchors: int = Field(
        100, ge=4, le=1024, description="anchor positions in the brain that parcels are projected onto"
    )
    fmri_parcels: Literal["corpus"] | Positions = Field(
        (),
        description="positions [mm, MNI] of the parcels that BOLD is read at, instead of anchors; corpus: those of its "
        "one atlas, which pretraining writes here",
    )
    spatial_form: SpatialForm = Field(
        "logarithm",
        description="form of the correlation in spatial tokens: matrix logarithm or root",
    )
    skips: tuple[Skip, ...] = Field(SKIPS, max_length=12, description="measured features beside the learned h")

    def anchors(self, modality: Modality) -> int:
        """Number of anchor positions of a modality; of BOLD at parcels, of parcels."""
        return self.eeg_anchors if modality == "eeg" else len(self.parcels()) or self.fmri_anchors

    def parcels(self) -> Positions:
        """The parcels that BOLD is read at; ``ValueError`` where they are not known yet."""
        if self.fmri_parcels == "corpus":
            raise ValueError("model.fmri_parcels: expected positions of parcels, found corpus, which pretraining reads")
        return self.fmri_parcels


class ObjectiveConfig(Config):
    """Weights of the loss; :mod:`mcsp.losses.objective` has the formula."""

    within_domain: float = Field(1.0, ge=0, description="weight of the contrast between two views of one domain")
    cross_domain: float = Field(1.0, ge=0, description="weight of the contrast between domains of one modality")
    alpha: float = Field(1.0, ge=0, description="weight of the cross-modal loss")
    beta: float = Field(0.5, ge=0, description="weight of distillation inside the cross-modal loss")
    gamma: float = Field(0.5, ge=0, description="weight of convergence inside the cross-modal loss")
    prediction: float = Field(1.0, ge=0, description="weight of predicting one half of a window from the other")
    temperature: float = Field(0.1, gt=0, description="initial, learned per term; 0.1 as in SimCLR (arXiv 2002.05709)")
    domain_temperature: dict[Domain, float] = Field(
        {}, description="initial ones of single domains; terms across domains take the geometric mean"
    )
    distillation_temperature: float = Field(0.1, gt=0, description="of both modalities' similarities in distillation")
    negatives: Literal["all", "within_site"] = Field(
        "all", description="what a row is contrasted with: all other subjects, or those of its own site"
    )
    shuffled_pairs: Literal["within_site"] | None = Field(
        None, description="control only: pair views of different people of one site"
    )
    precision: Literal["auto", "fp32", "tf32", "bf16"] = Field(
        "auto", description="of products of embeddings in the loss; auto: bf16 under bf16 autocast, else fp32"
    )


class AugmentationConfig(Config):
    """What makes the two views differ, per domain."""

    opposite_halves: tuple[Domain, ...] = Field(
        ("spatial",), description="domains whose views are opposite halves of the window in time"
    )
    channel_dropout: float = Field(0.1, ge=0, lt=1, description="spatial: largest fraction of channels dropped")
    position_jitter_mm: float = Field(3.0, ge=0, description="spatial: standard deviation")
    time_mask: float = Field(0.2, ge=0, lt=1, description="temporal: largest fraction of the window masked")
    amplitude_jitter: float = Field(0.1, ge=0, description="temporal: standard deviation of log gain")
    noise: float = Field(0.1, ge=0, description="temporal: noise relative to each channel's standard deviation")
    band_mask: float = Field(0.15, ge=0, lt=1, description="spectral: largest fraction of the band attenuated")
    tilt: float = Field(0.2, ge=0, description="spectral: standard deviation of the exponent change of 1/f")
