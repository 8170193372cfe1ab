"""Devices, precision, ONNX Runtime sessions and memory estimates."""
