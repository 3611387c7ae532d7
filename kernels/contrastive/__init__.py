"""Contrast and relational distillation over many pairs of embeddings; ``reference`` is the definition."""

from mcsp.kernels.contrastive.reference import (
    Columns,
    Negatives,
    contrastive_loss,
    relational_distillation,
    retrieval_accuracy,
)

__all__ = ["Columns", "Negatives", "contrastive_loss", "relational_distillation", "retrieval_accuracy"]
