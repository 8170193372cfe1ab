"""From command-line inputs to written answers."""
