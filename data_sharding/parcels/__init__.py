"""Parcellations: tables of their time series, their names, places and spaces, and atlases that are known by name."""
