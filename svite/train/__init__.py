"""One training run: data, loop, checkpoints, results."""

import svite._torchvision  # noqa: F401  (before timm)
