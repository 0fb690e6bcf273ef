"""SET: sparse evolutionary training."""

from collections.abc import Sequence

from torch import nn

from svite.sparsity.arguments import checked
from svite.sparsity.layers import Cutting, elements
from svite.sparsity.pool import Allocation, erk
from svite.sparsity.rule import DropGrow
from svite.sparsity.schedule import Falling, constant, every
from svite.sparsity.score import magnitude, random
from svite.sparsity.sparsifier import Sparsifier


@checked
def set(
    model: nn.Module,
    density: float,
    steps: int,
    *,
    interval: int = 100,
    fraction: float = 0.3,
    until: float = 0.8,
    schedule: Falling = constant,
    cut: Cutting = elements,
    pool: Allocation = erk,
    layers: Sequence[str] | None = None,
    seed: int = 0,
) -> Sparsifier:
    """Start random and sparse; drop the smallest `fraction` by magnitude, grow as many at random (arXiv 1707.04780).

    The paper updates after each epoch to the end; here until `until * steps`, as the other dynamic methods do, so that
    the last weights born have time to learn.

    Args:
        model: changed in place.
        density: kept fraction of the members, in (0, 1].
        steps: optimizer steps of the whole training.
        interval: steps between updates.
        fraction: share of the living that the first update replaces (the paper's zeta, 0.3), in [0, 1].
        until: share of `steps` after which the topology stays.
        schedule: how that share goes on from there; the paper's stays (`svite.sparsity.schedule.constant`).
        cut: what is pruned as one: every weight by itself, or `svite.heads`, `svite.neurons`, `svite.structures`.
        pool: how density is spread over layers.
        layers: name patterns of the layers to prune (default: all linear and convolution layers).
        seed: of the topology.

    Raises:
        ValueError: an argument that makes no sense; a density too low for a layer; no such layer, or one that is
            quantized or parametrized.
    """
    end = int(until * steps)
    return Sparsifier(
        model,
        pool(cut(model, layers), density),
        DropGrow(magnitude, random, schedule(fraction, end)),
        every(interval, until=end),
        seed=seed,
    )
