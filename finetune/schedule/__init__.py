"""The length of training: planned steps, early stopping, time."""
