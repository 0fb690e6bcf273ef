"""AC/DC: alternating compressed and decompressed training."""

from collections.abc import Sequence

from torch import nn

from svite.sparsity.arguments import checked
from svite.sparsity.layers import units
from svite.sparsity.pool import Allocation, global_allocation
from svite.sparsity.rule import Best
from svite.sparsity.schedule import alternating, among
from svite.sparsity.score import magnitude
from svite.sparsity.sparsifier import Sparsifier


@checked
def acdc(
    model: nn.Module,
    density: float,
    steps: int,
    *,
    rounds: int = 8,
    begin: float = 0.1,
    until: float = 0.85,
    pool: Allocation = global_allocation,
    layers: Sequence[str] | None = None,
) -> Sparsifier:
    """Start dense; prune the smallest weights, let all grow back, in turns; end pruned (arXiv 2106.12379, section 3).

    A pruned phase keeps its weights to the end; a dense phase begins where the pruned one ended, with zeros for what
    was dead and a fresh optimizer state for these (the paper resets that of all weights). The paper's ImageNet runs
    have phases of a twentieth of training between a tenth and 0.85 of it, and so have the defaults here, roughly.

    Args:
        model: changed in place.
        density: kept fraction of the prunable weights in pruned phases, in (0, 1].
        steps: optimizer steps of the whole training.
        rounds: pruned phases, the last among them; fewer where there are not steps enough.
        begin: share of `steps` before which the model stays dense.
        until: share of `steps` at which the last pruned phase begins.
        pool: how density is spread over layers (default: all layers compete).
        layers: name patterns of the layers to prune (default: all linear and convolution layers).

    Raises:
        ValueError: an argument that makes no sense; a density that would empty a layer; no such layer, or one that is
            quantized or parametrized.
    """
    if begin > until:
        raise ValueError(f"begin is {begin}, after `until`, which is {until}; pruning must begin before it ends.")
    last = max(int(until * steps), 1)
    first = min(max(int(begin * steps), 1), last)
    turns = 2 * (min(rounds, (last - first) // 2 + 1) - 1)
    switches = [first + (last - first) * turn // turns for turn in range(turns)] + [last]
    return Sparsifier(
        model, pool(units(model, layers), density), Best(magnitude, alternating(switches)), among(switches)
    )
