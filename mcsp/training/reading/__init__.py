"""What each step of a run reads, as a pure function of integers, and the loader that reads it."""
