"""Torch definitions of the encoders, and torch -> ONNX with a parity check."""
