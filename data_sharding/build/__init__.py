"""Building a corpus: plan, workers, shards, pseudonyms, and the checks before it is published."""
