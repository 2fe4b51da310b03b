"""What stands before and after a network: one text, read in one place, as a Python reference and as ONNX operators."""
