"""Regions marked by points and masks."""
