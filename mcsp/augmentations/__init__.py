"""Two views of a window for every domain."""
