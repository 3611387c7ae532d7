"""Recordings in, features out: exported weights, cleaning as in pretraining, a scikit-learn transformer."""
