"""Models on disk and elsewhere: one safetensors file that rebuilds them, and ONNX."""
