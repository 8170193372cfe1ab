"""Backends: one module per kind of model, behind the protocol in `base`."""
