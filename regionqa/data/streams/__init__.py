"""Training data read a record at a time, and indexes on disk of what does not fit in memory."""
