"""Block sparsity, learned from scratch."""

from collections.abc import Sequence

from torch import nn

from svite.methods.nm import dividing
from svite.sparsity.arguments import checked
from svite.sparsity.cut import block as square
from svite.sparsity.pool import Pool, uniform
from svite.sparsity.rule import DropGrow
from svite.sparsity.schedule import Falling, cosine, every
from svite.sparsity.score import gradient, magnitude
from svite.sparsity.sparsifier import Sparsifier


@checked
def block(
    model: nn.Module,
    density: float,
    steps: int,
    *,
    side: int = 16,
    interval: int = 100,
    fraction: float = 0.5,
    until: float = 0.75,
    schedule: Falling = cosine,
    layers: Sequence[str] | None = None,
    seed: int = 0,
) -> Sparsifier:
    """Squares of weights are kept or pruned as one (arXiv 1711.02782), dropped by magnitude and grown by gradient.

    What `svite.deploy` runs fastest at a given density. Without `layers`, a layer that does not divide into squares
    stays dense and is listed so in the summary.

    Args:
        model: changed in place.
        density: kept fraction of each layer's squares, in (0, 1].
        steps: optimizer steps of the whole training.
        side: of a square, 16 or 32 for the kernels of `svite.deploy`.
        interval: steps between updates.
        fraction: share of the living that the first update replaces, in [0, 1].
        until: share of `steps` at which that share reaches zero.
        schedule: how that share falls to there: `svite.sparsity.schedule.cosine`, `straight` or `constant`.
        layers: name patterns of the layers to prune; one that does not divide is an error.
        seed: of the topology.

    Raises:
        ValueError: an argument that makes no sense; a density too low for a layer; no such layer; a
            layer asked for that does not divide, or none that does.
    """
    end = int(until * steps)
    sparse, dense = dividing(model, square(side, side), layers)
    if not sparse:
        raise ValueError(f"No layer of {type(model).__name__} divides into squares of {side} x {side}.")
    return Sparsifier(
        model,
        uniform(sparse, density) + [Pool((unit,), 1.0) for unit in dense],
        DropGrow(magnitude, gradient, schedule(fraction, end)),
        every(interval, until=end),
        seed=seed,
    )
