"""Prompts, tokenization, decoding and streaming."""
