"""One-shot magnitude pruning."""

from collections.abc import Sequence

from torch import nn

from svite.sparsity.arguments import checked
from svite.sparsity.layers import Cutting, elements
from svite.sparsity.pool import Allocation, global_allocation
from svite.sparsity.rule import Prune
from svite.sparsity.schedule import once
from svite.sparsity.score import magnitude
from svite.sparsity.sparsifier import Sparsifier


@checked
def omp(
    model: nn.Module,
    density: float,
    *,
    cut: Cutting = elements,
    pool: Allocation = global_allocation,
    layers: Sequence[str] | None = None,
) -> Sparsifier:
    """Prune a trained model once by magnitude; train on after it (arXiv 1506.02626, section 3).

    Args:
        model: trained; changed in place, at once.
        density: kept fraction of the members, in (0, 1].
        cut: what is pruned as one: every weight by itself, or `svite.heads`, `svite.neurons`, `svite.structures`.
        pool: how density is spread over layers (default: all layers compete).
        layers: name patterns of the layers to prune (default: all linear and convolution layers).

    Raises:
        ValueError: an argument that makes no sense; a density that would empty a layer; no such layer, or one that is
            quantized or parametrized.
    """
    return Sparsifier(model, pool(cut(model, layers), density), Prune(magnitude), once(0))
