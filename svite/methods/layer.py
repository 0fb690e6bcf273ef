"""Layer sparsity: a pull on whole attention and MLP branches."""

from collections.abc import Sequence

from torch import nn

from svite.sparsity.arguments import checked
from svite.sparsity.penalty import penalties
from svite.sparsity.pool import with_branches
from svite.sparsity.sparsifier import Sparsifier
from svite.vit.branches import add_scales, branches


@checked
def layer(
    model: nn.Module,
    density: float,
    steps: int,
    *,
    strength: float = 0.3,
    interval: int = 100,
    until: float = 0.6,
    layers: Sequence[str] | None = None,
) -> Sparsifier:
    """Start dense; shorten every branch's LayerScale after each step, and keep the asked fraction of the branches.

    The layer-wise group lasso of arXiv 1608.03665, section 3.1, on timm's LayerScale, which a model without it gets (so
    build this before the optimizer). A branch whose scale is dead adds nothing: `svite.shrink(..., branches=True)`
    removes it.

    Args:
        model: changed in place.
        density: kept fraction of all branches in the end, in (0, 1]; at least one stays.
        steps: optimizer steps of the whole training.
        strength: of the penalty, 0 or more.
        interval: steps between the deaths of what is at zero.
        until: share of `steps` at which the penalty ends and the density is reached.
        layers: name patterns of branches, "blocks.*.mlp" say (default: all).

    Raises:
        ValueError: an argument that makes no sense; an `until` that never comes; a density that leaves no
            branch; no such branch.
    """
    pools = with_branches(branches(model, layers), density)
    rules, when = penalties(pools, steps, strength=strength, interval=interval, until=until)
    add_scales(model, layers)
    return Sparsifier(model, pools, rules, when)
