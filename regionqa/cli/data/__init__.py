"""`data`: check, look at, convert and generate training data."""

from regionqa.cli.data import checking, converting, generating
from regionqa.cli.data.app import data_app

__all__ = ["checking", "converting", "data_app", "generating"]
