"""SRigL: dynamic sparse training with a constant fan-in."""

from collections.abc import Sequence

from torch import nn

from svite.sparsity.arguments import checked
from svite.sparsity.cut import fan_in
from svite.sparsity.layers import units
from svite.sparsity.pool import Allocation, erk
from svite.sparsity.rule import DropGrow
from svite.sparsity.schedule import Falling, cosine, every
from svite.sparsity.score import gradient, magnitude
from svite.sparsity.sparsifier import Sparsifier


@checked
def srigl(
    model: nn.Module,
    density: float,
    steps: int,
    *,
    interval: int = 100,
    fraction: float = 0.3,
    until: float = 0.75,
    schedule: Falling = cosine,
    pool: Allocation = erk,
    layers: Sequence[str] | None = None,
    seed: int = 0,
) -> Sparsifier:
    """RigL in which every output keeps the same number of inputs (arXiv 2305.02299, section 3, without ablation).

    The density of a layer is rounded to a whole number of inputs an output. The paper's neuron ablation, which lets
    whole outputs are pruned at very low densities, is not part of this function.

    Args:
        model: changed in place.
        density: kept fraction of the prunable weights, in (0, 1].
        steps: optimizer steps of the whole training.
        interval: steps between updates.
        fraction: share of the living that the first update replaces, in [0, 1].
        until: share of `steps` at which that share reaches zero.
        schedule: how that share falls to there: `svite.sparsity.schedule.cosine`, `straight` or `constant`.
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
        pool(units(model, layers, fan_in()), density),
        DropGrow(magnitude, gradient, schedule(fraction, end)),
        every(interval, until=end),
        seed=seed,
    )
