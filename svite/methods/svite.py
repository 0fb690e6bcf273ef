"""SViTE: sparse Vision Transformer exploration."""

from collections.abc import Sequence

from torch import nn

from svite.sparsity.arguments import checked
from svite.sparsity.layers import Cutting, elements
from svite.sparsity.pool import Allocation, erk
from svite.sparsity.rule import DropGrow, bernoulli_start
from svite.sparsity.schedule import Falling, cosine, every
from svite.sparsity.score import gradient, magnitude
from svite.sparsity.sparsifier import Sparsifier


@checked
def svite(
    model: nn.Module,
    density: float,
    steps: int,
    *,
    interval: int = 100,
    fraction: float = 0.5,
    until: float = 0.8,
    schedule: Falling = cosine,
    batches: int = 1,
    paper: bool = False,
    cut: Cutting = elements,
    pool: Allocation = erk,
    layers: Sequence[str] | None = None,
    seed: int = 0,
) -> Sparsifier:
    """Start random and sparse; drop by magnitude, grow by gradient (arXiv 2106.04533, section 3.1).

    The drop fraction is alpha/2 (1 + cos(pi t / T_end)) with alpha = 0.5 and T_end = 0.8 of training. DeiT-Small at
    half density is to reach 79.7 % top-1 on ImageNet-1k (dense: 79.9 %).

    `paper=True` follows the released code where it differs from the paper and from this library: the cosine runs over
    the whole of training to a floor of 0.005 and is cut off before T_end, the first topology is drawn weight by weight
    (right in expectation only), and the optimizer sees dense gradients and keeps the moments of what goes and comes.
    Not followed are its ties that lose density, its updates by non-finite gradients, its update after the step in place
    of before it, and its broadcast of every mask at every step.

    Args:
        model: changed in place.
        density: kept fraction of the members, in (0, 1].
        steps: optimizer steps of the whole training.
        interval: steps between updates (Delta T; the authors' runs: about 1 % of training).
        fraction: share of the living that the first update replaces (alpha), in [0, 1].
        until: share of `steps` after which the topology stays (T_end).
        schedule: how that share falls to there: `svite.sparsity.schedule.cosine`, `straight` or `constant`.
        batches: growth gradients are averaged over so many steps before an update (the paper: 1).
        paper: follow the released code.
        cut: what is pruned as one: every weight by itself, or `svite.heads`, `svite.neurons`, `svite.structures`.
        pool: how density is spread over layers.
        layers: name patterns of the layers to prune (default: all linear and convolution layers).
        seed: of the topology.

    Raises:
        ValueError: an argument that makes no sense; a density too low for a layer; no such layer, or one that is
            quantized or parametrized.
    """
    if paper and schedule is not cosine:
        raise ValueError("paper=True has a schedule of its own, that of the released code; leave `schedule` out.")
    end = int(until * steps)
    exact = DropGrow(magnitude, gradient, schedule(fraction, end), batches=batches)
    released = DropGrow(magnitude, gradient, cosine(fraction, steps, stop=0.005), bernoulli_start, batches)
    return Sparsifier(
        model,
        pool(cut(model, layers), density),
        released if paper else exact,
        every(interval, until=end - 1 if paper else end),
        seed=seed,
        dense_moments=paper,
    )
