"""The page to draw on, and the JSON API, over one engine."""
