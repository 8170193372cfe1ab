"""Published checkpoints as sources of bundles."""
