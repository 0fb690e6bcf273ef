"""l1 sparsity: a pull on single weights."""

from collections.abc import Sequence

from torch import nn

from svite.sparsity.arguments import checked
from svite.sparsity.layers import Cutting, elements
from svite.sparsity.penalty import penalties
from svite.sparsity.pool import Allocation, global_allocation
from svite.sparsity.sparsifier import Sparsifier


@checked
def l1(
    model: nn.Module,
    density: float,
    steps: int,
    *,
    strength: float = 0.03,
    interval: int = 100,
    until: float = 0.6,
    cut: Cutting = elements,
    pool: Allocation = global_allocation,
    layers: Sequence[str] | None = None,
) -> Sparsifier:
    """Start dense; soft-threshold every weight after each step, and cut what is left to the density (arXiv 1506.02626).

    The threshold is learning rate times `strength`. The default sends weights to zero within some hundred steps at
    learning rates around 0.01; a smaller rate wants a larger strength, or leaves more to the cut.

    Args:
        model: changed in place.
        density: kept fraction of the members in the end, in (0, 1].
        steps: optimizer steps of the whole training.
        strength: of the penalty, 0 or more.
        interval: steps between the deaths of what is at zero.
        until: share of `steps` at which the penalty ends and the density is reached.
        cut: what is pruned as one: every weight by itself, or `svite.heads`, `svite.neurons`, `svite.structures`.
        pool: how density is spread over layers (default: all layers compete).
        layers: name patterns of the layers to prune (default: all linear and convolution layers).

    Raises:
        ValueError: an argument that makes no sense; an `until` that never comes; a density that would empty a
            layer; no such layer, or one that is quantized or parametrized.
    """
    pools = pool(cut(model, layers), density)
    rules, when = penalties(pools, steps, strength=strength, interval=interval, until=until)
    return Sparsifier(model, pools, rules, when)
