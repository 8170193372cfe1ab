"""Finetuning of vision-language models of the Hub: what differs from finetuning a bundle."""
