"""The evaluation's report: tables, pictures, one HTML page."""
