"""Training records for the starter, written from annotations and the encoders' beliefs."""
