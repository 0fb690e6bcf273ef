"""Group sparsity: a pull on whole heads and neurons."""

from torch import nn

from svite.sparsity.arguments import checked
from svite.sparsity.penalty import penalties
from svite.sparsity.pool import Allocation, global_allocation
from svite.sparsity.sparsifier import Sparsifier
from svite.vit import structure


@checked
def group(
    model: nn.Module,
    density: float,
    steps: int,
    *,
    strength: float = 0.03,
    interval: int = 100,
    until: float = 0.6,
    pool: Allocation = global_allocation,
) -> Sparsifier:
    """Start dense; shorten every head and neuron after each step, and cut what is left to the density.

    The group lasso of structured sparsity learning (arXiv 1608.03665), as its proximal step: a member of n weights and
    length |w| is scaled by 1 - learning rate * strength * sqrt(n) / |w|. Heads compete with heads and neurons with
    neurons, those of all layers. `svite.shrink` removes the dead, and `svite.narrow` makes the rest of training cheaper
    once they are.

    Args:
        model: changed in place.
        density: kept fraction of the heads and of the neurons in the end, in (0, 1].
        steps: optimizer steps of the whole training.
        strength: of the penalty, 0 or more.
        interval: steps between the deaths of what is at zero.
        until: share of `steps` at which the penalty ends and the density is reached.
        pool: how the density is spread over layers (default: all layers compete; each keeps at least one member).

    Raises:
        ValueError: an argument that makes no sense; an `until` that never comes; a density that leaves fewer
            members than layers.
    """
    pools = [*pool(structure.heads(model), density), *pool(structure.neurons(model), density)]
    rules, when = penalties(pools, steps, strength=strength, interval=interval, until=until)
    return Sparsifier(model, pools, rules, when)
