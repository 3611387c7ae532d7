"""The training objective; ``objective`` holds the whole of it."""

from mcsp.losses.contrastive import Slot, slots
from mcsp.losses.objective import PairTerm, initial_log_scale, objective, pair_terms
from mcsp.losses.prediction import PredictionTerm, prediction_error, prediction_terms

__all__ = [
    "PairTerm",
    "PredictionTerm",
    "Slot",
    "initial_log_scale",
    "objective",
    "pair_terms",
    "prediction_error",
    "prediction_terms",
    "slots",
]
