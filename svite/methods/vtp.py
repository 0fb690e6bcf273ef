"""VTP: Vision Transformer pruning by learned gates."""

from torch import nn

from svite.sparsity.arguments import checked
from svite.sparsity.penalty import penalties
from svite.sparsity.pool import global_allocation
from svite.sparsity.sparsifier import Sparsifier
from svite.vit.gates import add_gates, gates


@checked
def vtp(
    model: nn.Module,
    density: float,
    steps: int,
    *,
    strength: float = 0.3,
    interval: int = 100,
    until: float = 0.5,
) -> Sparsifier:
    """Learn a gate for each input feature of a block's four linear layers, keep the largest (arXiv 2104.08500).

    Gates are pulled to zero while they learn; at `until` one threshold over all of them leaves the asked fraction, and
    the rest of training is without penalty. Then `svite.vit.gates.fold` multiplies the gates into the weights,
    `svite.shrink` removes neurons and heads without features, and `svite.vit.gather.gather_inputs` the features that no
    layer reads. The paper adds 1e-4 times the gates' l1 norm to the loss; here it is a proximal step, so that zeros
    are exact, whatever the optimizer makes of gradients. DeiT-Base with 0.6 of the dimensions is to lose 1.1
    points on ImageNet-1k. Build this before the optimizer: gates are parameters.

    Args:
        model: changed in place.
        density: kept fraction of the gates, in (0, 1].
        steps: optimizer steps of the whole training.
        strength: of the penalty, 0 or more.
        interval: steps between the deaths of what is at zero.
        until: share of `steps` at which the penalty ends and the density is reached.

    Raises:
        ValueError: an argument that makes no sense; an `until` that never comes; a density that would empty a
            layer; a model that can't be gated.
    """
    pools = global_allocation(gates(model), density)
    rules, when = penalties(pools, steps, strength=strength, interval=interval, until=until)
    add_gates(model)
    return Sparsifier(model, pools, rules, when)
