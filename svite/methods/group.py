"""Group sparsity: a pull on whole heads and neurons."""

from collections.abc import Sequence

from torch import nn

from svite.sparsity.layers import Cutting
from svite.sparsity.penalty import penalised
from svite.sparsity.pool import Allocation, uniform
from svite.sparsity.sparsifier import Sparsifier
from svite.vit.structure import structures


def group(
    model: nn.Module,
    density: float,
    steps: int,
    *,
    strength: float = 0.03,
    interval: int = 100,
    until: float = 0.6,
    cut: Cutting = structures,
    pool: Allocation = uniform,
    layers: Sequence[str] | None = None,
) -> Sparsifier:
    """Start dense; shorten every head and neuron after each step, and cut what is left to the density.

    The group lasso of structured sparsity learning (arXiv 1608.03665), as its proximal step: a member of n weights and
    length |w| is scaled by 1 - learning rate * strength * sqrt(n) / |w|. `svite.shrink` removes the dead, and
    `svite.narrow` makes the rest of training cheaper once they are.

    Args:
        model: changed in place.
        density: kept fraction of the heads and of the neurons in the end, in (0, 1].
        steps: optimizer steps of the whole training.
        strength: of the penalty, 0 or more.
        interval: steps between the deaths of what is at zero.
        until: share of `steps` at which the penalty ends and the density is reached.
        cut: what lives or dies as one (default: heads and neurons).
        pool: how density is spread over layers (default: each attention layer and MLP by itself).
        layers: name patterns of attention layers and MLPs (default: all).

    Raises:
        ValueError: a strength below 0; density outside (0, 1], or one that leaves a layer without a head or a neuron;
            no such layer.
    """
    pools = pool(cut(model, layers), density)
    return penalised(model, pools, steps, strength=strength, interval=interval, until=until)
