"""Vision-language models of the Hub: their cards, and how a region becomes part of a prompt."""
