"""Backends of the engine: one per kind of model."""
