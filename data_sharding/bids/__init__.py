"""BIDS datasets: which recordings there are, and the tables and sidecars beside them. Knows files, not signals."""
