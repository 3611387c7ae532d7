"""BIDS datasets of the demo: recordings that come inside packages, and simulated ones."""
