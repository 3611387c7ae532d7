"""Configuration: the schema of every command, one file per purpose; ``base`` holds the mechanism."""

from mcsp.config.base import Config, find_config
from mcsp.config.corpus import CorpusConfig, EegConfig, FmriConfig, SiteConfig
from mcsp.config.evaluate import EvaluateConfig, ExplainConfig, FinetuneConfig, LabelledConfig
from mcsp.config.model import AugmentationConfig, ModelConfig, ObjectiveConfig
from mcsp.config.pretrain import BatchConfig, HealthConfig, PretrainConfig

__all__ = [
    "AugmentationConfig", "BatchConfig", "Config", "CorpusConfig", "EegConfig", "EvaluateConfig", "ExplainConfig",
    "FinetuneConfig", "FmriConfig", "HealthConfig", "LabelledConfig", "ModelConfig", "ObjectiveConfig",
    "PretrainConfig", "SiteConfig", "find_config",
]  # fmt: skip
