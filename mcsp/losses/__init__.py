"""The training objective; ``objective`` holds the whole of it."""

from mcsp.losses.objective import PairTerm, Slot, objective, pair_terms, slots

__all__ = ["PairTerm", "Slot", "objective", "pair_terms", "slots"]
