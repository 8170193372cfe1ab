"""Model bundles: cards, files on disk, downloads from the Hub."""
