"""Vision encoders of Hub models as ONNX graphs."""
