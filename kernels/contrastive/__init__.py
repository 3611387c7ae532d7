"""Contrast and relational distillation over many pairs of embeddings; ``reference`` is the definition."""

from mcsp.kernels.contrastive.losses import contrastive_loss, relational_distillation, retrieval_accuracy
from mcsp.kernels.contrastive.problem import Columns, Negatives

__all__ = ["Columns", "Negatives", "contrastive_loss", "relational_distillation", "retrieval_accuracy"]
