"""The training objective; :mod:`mcsp.losses.objective` holds the whole of it."""
