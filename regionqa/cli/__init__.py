"""Command line."""

from regionqa.cli.main import app, main

__all__ = ["app", "main"]
