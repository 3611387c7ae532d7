"""Validation during a run: losses, measures without labels, and the best checkpoint."""
