"""Shared test helpers: tiny models, a stand-in Hub, generated weights."""
