"""Classification from frozen or fine-tuned features beside their baselines, and cross-modal retrieval."""
