"""Convert files that are not BIDS to BIDS derivatives, described by a table."""
