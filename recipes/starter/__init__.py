"""Recipe of the embedded starter model."""
