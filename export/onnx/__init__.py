"""ONNX export, files and parity checks."""
