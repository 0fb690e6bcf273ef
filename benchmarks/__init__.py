"""What a sparsifier costs, as ratios measured in one run: `python -m benchmarks`."""

import svite  # noqa: F401  (before timm)
