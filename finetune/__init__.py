"""Finetuning: from records and a base bundle to a new bundle."""
