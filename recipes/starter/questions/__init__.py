"""Questions drawn from annotations for the starter's training."""
