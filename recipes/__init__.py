"""Training recipes. Not part of the installed package."""
