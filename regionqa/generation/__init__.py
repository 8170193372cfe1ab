"""Instruction data from annotations, written by a language model."""
