"""Training records for the starter, written from annotations."""
