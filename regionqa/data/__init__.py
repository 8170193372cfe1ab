"""Records shared by asking, evaluation and training."""
