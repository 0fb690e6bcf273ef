"""N:8 sparsity, learned from scratch."""

from collections.abc import Sequence

from torch import nn

from svite.methods.nm import nm
from svite.sparsity.arguments import checked
from svite.sparsity.sparsifier import Sparsifier


@checked
def nm8(
    model: nn.Module,
    density: float,
    steps: int,
    *,
    interval: int = 100,
    layers: Sequence[str] | None = None,
    seed: int = 0,
) -> Sparsifier:
    """`svite.methods.nm` with groups of eight: 4:8 at half of the weights, freer than 2:4 (arXiv 2104.08378).

    Args:
        model: changed in place.
        density: kept fraction, a whole number of every eight inputs.
        steps: optimizer steps of the whole training.
        interval: steps between updates.
        layers: name patterns of the layers to prune; one that does not divide is an error.
        seed: of the topology.

    Raises:
        ValueError: as `nm`.
    """
    return nm(model, density, steps, m=8, interval=interval, layers=layers, seed=seed)
