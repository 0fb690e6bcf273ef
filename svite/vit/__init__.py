"""The timm Vision Transformer: what it attends to and what it costs."""

import svite._torchvision  # noqa: F401  (before timm)
