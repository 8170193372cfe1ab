"""Torch definitions of the encoders."""
