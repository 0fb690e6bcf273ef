"""Wanda: pruning by weights and activations."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from svite.calibration.inputs import arranged, inputs
from svite.sparsity.arguments import check
from svite.sparsity.cut import fan_in
from svite.sparsity.mask import apply_mask, top
from svite.sparsity.names import named_parameters
from svite.sparsity.rule import Prune
from svite.sparsity.schedule import once
from svite.sparsity.score import magnitude
from svite.sparsity.sparsifier import Sparsifier


@torch.no_grad()
def wanda(
    model: nn.Module,
    images: Float[Tensor, "..."],
    density: float,
    *,
    m: int | None = None,
    batch: int = 64,
    layers: Sequence[str] | None = None,
) -> Sparsifier:
    """Prune a trained model without training, by |w| times the length of what the weight reads (arXiv 2306.11695).

    Section 3: S_ij = |W_ij| ||X_j||, over all positions of the images, and every output keeps the same number of its
    inputs. Layers go one after the other, each judged by what it reads once those before it are pruned. Masks stay as
    they are in a training that follows.

    Args:
        model: trained; changed in place, at once.
        images: (image, channel, height, width), prepared as for the model; some hundred will do.
        density: kept fraction of each output's inputs, in (0, 1].
        m: keep `density * m` of every `m` consecutive inputs; a layer that does not divide stays dense.
        batch: images at a time.
        layers: name patterns of the layers to prune (default: all linear and convolution layers).

    Raises:
        ValueError: an argument that makes no sense; a density that leaves an output no input; no such layer, one that
            is quantized or parametrized, or one whose inputs can't be told apart.
    """
    check(batch=batch)
    pools = arranged(model, images, density, m, fan_in(), layers)
    for pool in (pool for pool in pools if pool.density < 1):
        (unit,) = pool.units
        weight, (part,) = named_parameters(model)[unit.name], unit.parts
        squares = sum(read.square().sum(0) for read in inputs(model, unit, images, batch))
        scores = weight.flatten(1).abs() * squares.sqrt()
        alive = top(part.cut.gather(scores), pool.keep(pool.density))
        apply_mask(weight, part.cut.spread(alive, weight.shape))
    return Sparsifier(model, pools, Prune(magnitude), once(0))
