"""Cross-modal retrieval and its controls."""
