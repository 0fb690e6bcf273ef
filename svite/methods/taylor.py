"""First-order Taylor pruning."""

from collections.abc import Sequence

from torch import nn

from svite.sparsity.arguments import checked
from svite.sparsity.layers import Cutting, elements
from svite.sparsity.pool import Allocation, global_allocation
from svite.sparsity.rule import Prune
from svite.sparsity.schedule import every, linear
from svite.sparsity.score import output_change
from svite.sparsity.score import taylor as squared_change
from svite.sparsity.sparsifier import Sparsifier


@checked
def taylor(
    model: nn.Module,
    density: float,
    steps: int,
    *,
    batches: int = 10,
    rounds: int = 5,
    cut: Cutting = elements,
    pool: Allocation = global_allocation,
    layers: Sequence[str] | None = None,
) -> Sparsifier:
    """Prune a trained model in `rounds` cuts by (w dL/dw)^2, averaged over batches (arXiv 1906.10771, section 3).

    Heads and neurons go by what the loss would change without their output, to first order: |output times gradient|,
    summed over an image's positions and averaged over images (arXiv 2106.04533, section 3.2, 1611.06440, section 2.2).

    Training goes on between the cuts: the score is gathered from the gradients of the next `batches` steps, and the
    density goes down in equal parts. The last cut is made `rounds * batches` steps from now, and no later than halfway.

    Args:
        model: trained; changed in place over the next steps.
        density: kept fraction of the members in the end, in (0, 1].
        steps: optimizer steps of the training that follows.
        batches: steps over which a score is averaged.
        rounds: cuts.
        cut: what is pruned as one: every weight by itself, or `svite.heads`, `svite.neurons`, `svite.structures`.
        pool: how density is spread over layers (default: all layers compete).
        layers: name patterns of the layers to prune (default: all linear and convolution layers).

    Raises:
        ValueError: an argument that makes no sense; a density that would empty a layer; no such layer, or one that is
            quantized or parametrized.
    """
    half = max(steps // 2, 1)
    rounds = min(rounds, half)
    batches = min(batches, half // rounds)
    last = batches * rounds
    units = cut(model, layers)
    score = output_change if all(unit.reader for unit in units) else squared_change
    return Sparsifier(
        model,
        pool(units, density),
        Prune(score, linear(0.0, 1.0, end=last), batches),
        every(batches, until=last),
    )
