"""RigL: rigging the lottery."""

from collections.abc import Sequence

from torch import nn

from svite.sparsity.arguments import checked
from svite.sparsity.layers import Cutting, elements
from svite.sparsity.pool import Allocation, erk
from svite.sparsity.rule import DropGrow
from svite.sparsity.schedule import Falling, cosine, every
from svite.sparsity.score import gradient, magnitude
from svite.sparsity.sparsifier import Sparsifier


@checked
def rigl(
    model: nn.Module,
    density: float,
    steps: int,
    *,
    interval: int = 100,
    fraction: float = 0.3,
    until: float = 0.75,
    schedule: Falling = cosine,
    batches: int = 1,
    cut: Cutting = elements,
    pool: Allocation = erk,
    layers: Sequence[str] | None = None,
    seed: int = 0,
) -> Sparsifier:
    """Start random and sparse; drop by magnitude, grow by gradient, less and less (arXiv 1911.11134, section 3).

    The paper's ResNet-50 setting: interval 100, alpha 0.3 on a cosine to zero at three quarters of training.

    Args:
        model: changed in place.
        density: kept fraction of the members, in (0, 1].
        steps: optimizer steps of the whole training.
        interval: steps between updates.
        fraction: share of the living that the first update replaces (alpha), in [0, 1].
        until: share of `steps` at which that share reaches zero (T_end).
        schedule: how that share falls to there: `svite.sparsity.schedule.cosine`, `straight` or `constant`.
        batches: growth gradients are averaged over so many steps before an update (the paper: 1).
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
        DropGrow(magnitude, gradient, schedule(fraction, end), batches=batches),
        every(interval, until=end),
        seed=seed,
    )
