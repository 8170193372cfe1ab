"""Bundles that ship with the package; `starter` is the default model."""
