"""Training: data, stages, and the recipe of the starter."""
