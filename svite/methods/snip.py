"""SNIP: single-shot pruning at initialisation."""

from collections.abc import Sequence

from torch import nn

from svite.sparsity.layers import units
from svite.sparsity.pool import Allocation, together
from svite.sparsity.rule import Prune
from svite.sparsity.schedule import once
from svite.sparsity.score import saliency
from svite.sparsity.sparsifier import Sparsifier


def snip(
    model: nn.Module,
    density: float,
    *,
    allocate: Allocation = together,
    layers: Sequence[str] | None = None,
) -> Sparsifier:
    """Prune once, before training, by |w dL/dw| of the gradients in `.grad` (arXiv 1810.02340, section 4).

    Args:
        model: changed in place; a backward pass has been made.
        density: kept fraction of the prunable weights, in (0, 1].
        allocate: how density is spread over layers (the paper: all layers compete).
        layers: name patterns of the layers to prune (default: all linear and convolution layers).

    Raises:
        ValueError: no gradients; density outside (0, 1], or one that would empty a layer; no such layer.
    """
    return Sparsifier(model, allocate(units(model, layers), density), Prune(saliency), once(0))
