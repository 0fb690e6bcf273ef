"""What a sparsifier costs, as ratios measured in one run: `python -m benchmarks`."""

import svite._torchvision  # noqa: F401  before timm
