"""Long searches for faults, run by make targets; the default suite has what they found as tests."""
