"""GraNet: gradual pruning with zero-cost neuroregeneration."""

from collections.abc import Sequence

from torch import nn

from svite.sparsity.arguments import checked
from svite.sparsity.layers import Cutting, elements
from svite.sparsity.pool import Allocation, global_allocation
from svite.sparsity.rule import PruneGrow, erk_start
from svite.sparsity.schedule import Falling, Ramp, cosine, cubic, ending
from svite.sparsity.score import gradient, magnitude
from svite.sparsity.sparsifier import Sparsifier


@checked
def granet(
    model: nn.Module,
    density: float,
    steps: int,
    *,
    initial: float = 0.5,
    interval: int = 100,
    fraction: float = 0.5,
    until: float = 0.8,
    ramp: Ramp = cubic,
    schedule: Falling = cosine,
    cut: Cutting = elements,
    pool: Allocation = global_allocation,
    layers: Sequence[str] | None = None,
    seed: int = 0,
) -> Sparsifier:
    """Prune gradually by magnitude and, at each cut, replace a share of what is left by gradient (arXiv 2106.10404).

    Section 4: the cut goes over all layers, then every layer drops and grows as many of its own, as in RigL. It starts
    random and sparse by ERK, or with `initial=1` dense. Pruning and growth end at the same step here; the paper's runs
    prune to half or a third of training and go on replacing.

    Args:
        model: changed in place.
        density: kept fraction of the members in the end, in (0, 1].
        steps: optimizer steps of the whole training.
        initial: kept fraction of the members at the start; 1 is dense.
        interval: steps between updates.
        fraction: share of the living that the first update replaces, in [0, 1].
        until: share of `steps` at which the density is reached and that share is zero.
        ramp: how sparsity rises to there: `svite.sparsity.schedule.cubic` (the paper) or `linear`.
        schedule: how that share falls to there: `svite.sparsity.schedule.cosine`, `straight` or `constant`.
        cut: what is pruned as one: every weight by itself, or `svite.heads`, `svite.neurons`, `svite.structures`.
        pool: how density is spread over layers (default: all layers compete).
        layers: name patterns of the layers to prune (default: all linear and convolution layers).
        seed: of the topology.

    Raises:
        ValueError: an argument that makes no sense; a density too low for a layer; no such layer, or one that is
            quantized or parametrized.
    """
    if initial < density:
        raise ValueError(f"initial is {initial}, below the density of {density}; GraNet starts at it or above.")
    end = max(int(until * steps), 1)
    rule = PruneGrow(
        magnitude, gradient, schedule(fraction, end), erk_start(initial), ramp=ramp(0.0, 1.0, end, 0), initial=initial
    )
    return Sparsifier(model, pool(cut(model, layers), density), rule, ending(interval, end), seed=seed)
