"""What a run says of people that it does not learn from: losses, measures without labels, and the best checkpoint."""
