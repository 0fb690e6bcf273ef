"""Models on disk and elsewhere: one safetensors file that rebuilds them, and ONNX."""

import svite._torchvision  # noqa: F401  (before timm)
