"""Training of the starter's encoders."""
