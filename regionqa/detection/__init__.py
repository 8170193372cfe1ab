"""Object detectors: boxes for images that have none."""
