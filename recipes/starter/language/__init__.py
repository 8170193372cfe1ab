"""Training of the starter's language model."""
