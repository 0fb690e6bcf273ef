"""Gradual magnitude pruning."""

from collections.abc import Sequence

from torch import nn

from svite.sparsity.arguments import checked
from svite.sparsity.layers import Cutting, elements
from svite.sparsity.pool import Allocation, global_allocation
from svite.sparsity.rule import Prune
from svite.sparsity.schedule import Ramp, cubic, ending
from svite.sparsity.score import magnitude
from svite.sparsity.sparsifier import Sparsifier


@checked
def gmp(
    model: nn.Module,
    density: float,
    steps: int,
    *,
    interval: int = 100,
    begin: float = 0.1,
    until: float = 0.8,
    ramp: Ramp = cubic,
    cut: Cutting = elements,
    pool: Allocation = global_allocation,
    layers: Sequence[str] | None = None,
) -> Sparsifier:
    """Start dense; sparsity rises as s_f (1 - (1 - progress)^3), the smallest weights going first (arXiv 1710.01878).

    Args:
        model: changed in place.
        density: kept fraction of the members in the end, in (0, 1].
        steps: optimizer steps of the whole training.
        interval: steps between cuts.
        begin: share of `steps` before which the model stays dense.
        until: share of `steps` at which the density is reached.
        ramp: how sparsity rises from there to here: `svite.sparsity.schedule.cubic` (the paper) or `linear`.
        cut: what is pruned as one: every weight by itself, or `svite.heads`, `svite.neurons`, `svite.structures`.
        pool: how density is spread over layers (default: all layers compete).
        layers: name patterns of the layers to prune (default: all linear and convolution layers).

    Raises:
        ValueError: an argument that makes no sense; a density that would empty a layer; no such layer, or one that is
            quantized or parametrized.
    """
    if begin > until:
        raise ValueError(f"begin is {begin}, after `until`, which is {until}; the ramp must begin before it ends.")
    last = max(int(until * steps), 1)
    first = min(max(int(begin * steps), 1), last)
    return Sparsifier(
        model,
        pool(cut(model, layers), density),
        Prune(magnitude, ramp(0.0, 1.0, last, first)),
        ending(interval, last, begin=first),
    )
