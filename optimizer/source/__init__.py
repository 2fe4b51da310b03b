"""The first door in: ONNX files, PyTorch modules, samples and the user's own functions, none of them trusted."""
