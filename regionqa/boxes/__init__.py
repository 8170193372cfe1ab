"""Box annotation formats."""
