"""Checkpoints: complete or absent, and weights that a new run starts from."""
