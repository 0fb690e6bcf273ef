"""SNIP: single-shot pruning at initialisation."""

from collections.abc import Sequence

from torch import nn

from svite.sparsity.arguments import checked
from svite.sparsity.layers import Cutting, elements
from svite.sparsity.pool import Allocation, global_allocation
from svite.sparsity.rule import Prune
from svite.sparsity.schedule import once
from svite.sparsity.score import saliency
from svite.sparsity.sparsifier import Sparsifier


@checked
def snip(
    model: nn.Module,
    density: float,
    *,
    cut: Cutting = elements,
    pool: Allocation = global_allocation,
    layers: Sequence[str] | None = None,
) -> Sparsifier:
    """Prune once, before training, by |w dL/dw| of the gradients in `.grad` (arXiv 1810.02340, section 4).

    Args:
        model: changed in place; a backward pass has been made.
        density: kept fraction of the members, in (0, 1].
        cut: what is pruned as one: every weight by itself, or `svite.heads`, `svite.neurons`, `svite.structures`.
        pool: how density is spread over layers (the paper: all layers compete).
        layers: name patterns of the layers to prune (default: all linear and convolution layers).

    Raises:
        ValueError: no gradients; an argument that makes no sense; a density that would empty a layer; no such layer, or
            one that is quantized or parametrized.
    """
    return Sparsifier(model, pool(cut(model, layers), density), Prune(saliency), once(0))
