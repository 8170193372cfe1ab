"""What is in training data: statistics, and samples to look at."""
