"""Files that are not BIDS become BIDS derivatives, as a table of them says."""
