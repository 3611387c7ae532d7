"""The corpus on disk or in an object store: its index and tables, and reading single windows."""
