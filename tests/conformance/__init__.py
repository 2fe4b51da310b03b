"""ONNX's own conformance cases through the lossless passes: `make conformance`, and a slice of it in `make test`."""
