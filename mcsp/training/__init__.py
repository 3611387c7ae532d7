"""Pretraining: the run, its steps, DeepSpeed, health, metrics."""
