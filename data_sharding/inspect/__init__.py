"""Looking at a finished corpus: lint, survey, report."""
