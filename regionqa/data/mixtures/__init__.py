"""Mixtures: TOML files that say how much of which data file is trained on, and in which stage."""
