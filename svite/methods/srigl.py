"""SRigL: dynamic sparse training with a constant fan-in."""

from collections.abc import Sequence

from torch import nn

from svite.sparsity.arguments import checked
from svite.sparsity.constant_fan_in import ConstantFanIn
from svite.sparsity.cut import fan_in
from svite.sparsity.layers import units, weights
from svite.sparsity.pool import Allocation, erk
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
    salient: float = 0.3,
    pool: Allocation = erk,
    layers: Sequence[str] | None = None,
    seed: int = 0,
) -> Sparsifier:
    """RigL in which every active output of a layer has the same number of inputs (arXiv 2305.02299, section 3).

    Who goes is decided in the whole layer and who comes in each output, and an output that is left with too few
    weights that matter loses all of them: its share goes to the others (`ConstantFanIn` has the rule). Neurons without
    inputs are removed by `svite.shrink`. The last layer, whose outputs are classes, loses none.

    A layer starts with its density rounded to a whole number of inputs an output, and ends at that number of weights
    less what is left of dividing it by the outputs that are active: density is what was asked up to that.

    It follows the code in calgaryml/condensed-sparsity but for this. Where that is to keep more weights than the active
    outputs have, it keeps dead ones, of no matter which index; here births by gradient take their place. Where an
    output has more than its new number, it keeps no matter which; here the largest stay. It also rounds the first
    number of inputs up, draws other initial weights, and forgets the momentum of all at an update, not of the newborn.

    Args:
        model: changed in place.
        density: kept fraction of the prunable weights, in (0, 1].
        steps: optimizer steps of the whole training.
        interval: steps between updates.
        fraction: share of the living that the first update replaces, in [0, 1].
        until: share of `steps` at which that share reaches zero.
        schedule: how that share falls to there: `svite.sparsity.schedule.cosine`, `straight` or `constant`.
        salient: an output is ablated if a smaller share of its inputs than this matters, in [0, 1]; 0: none is. 0.3 is
            what the paper takes for ResNets; for ViT-B/16 it takes 0.95, of which its code has a sweep only.
        pool: how density is spread over layers.
        layers: name patterns of the layers to prune (default: all linear and convolution layers).
        seed: of the topology.

    Raises:
        ValueError: an argument that makes no sense; a density too low for a layer; no such layer, or one that is
            quantized or parametrized.
    """
    end = int(until * steps)
    pools = pool(units(model, layers, fan_in()), density)
    classes = list(weights(model).values())[-1].shape  # and those of a distilled model's other head
    rules = [
        ConstantFanIn(
            magnitude,
            gradient,
            schedule(fraction, end),
            salient=0.0 if any(unit.shape == classes for unit in each.units) else salient,
        )
        for each in pools
    ]
    return Sparsifier(model, pools, rules, every(interval, until=end), seed=seed)
