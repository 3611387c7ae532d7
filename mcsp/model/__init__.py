"""The model: six domain encoders, their projections, and the folder that holds exported weights."""
