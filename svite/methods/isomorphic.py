"""Isomorphic pruning: heads and neurons, each ranked among those of its own form."""

from collections.abc import Sequence

from torch import nn

from svite.sparsity.arguments import checked
from svite.sparsity.pool import isomorphic as by_form
from svite.sparsity.rule import Prune
from svite.sparsity.schedule import once
from svite.sparsity.score import saliency
from svite.sparsity.sparsifier import Sparsifier
from svite.vit.structure import structures


@checked
def isomorphic(
    model: nn.Module,
    density: float,
    steps: int,
    *,
    batches: int = 10,
    layers: Sequence[str] | None = None,
) -> Sparsifier:
    """Prune heads and neurons of a trained model once, each kind and form of them by one ranking (arXiv 2407.04616).

    Section 3: scores of a head and of a neuron, or of two heads of other widths, do not compare, so every group of the
    same form keeps the same share, whichever layers its members are in. The score is |w dL/dw| over all weights of a
    member, averaged over the next `batches` steps, and no more than half of them; the rest of the training recovers.
    The paper prunes features of the residual stream, too, and sums gradients over the batches before the product.
    `svite.shrink` removes what is dead.

    Args:
        model: trained; changed in place over the next steps.
        density: kept fraction of the heads and of the neurons, in (0, 1].
        steps: optimizer steps of the training that follows.
        batches: steps over which a score is averaged.
        layers: name patterns of attention layers and MLPs, "blocks.*.mlp" say (default: all).

    Raises:
        ValueError: an argument that makes no sense; a density that leaves fewer members than layers; no such layer, or
            one that is quantized or parametrized.
    """
    last = min(batches, max(steps // 2, 1))
    return Sparsifier(model, by_form(structures(model, layers), density), Prune(saliency, batches=last), once(last))
