"""Checks and reports of a finished corpus."""
