"""SparseGPT: pruning that corrects what is left."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from svite.calibration.inputs import arranged, inputs
from svite.sparsity.arguments import check
from svite.sparsity.cut import element
from svite.sparsity.mask import count, top
from svite.sparsity.names import named_parameters
from svite.sparsity.rule import Prune
from svite.sparsity.schedule import once
from svite.sparsity.score import magnitude
from svite.sparsity.sparsifier import Sparsifier


@torch.no_grad()
def sparsegpt(
    model: nn.Module,
    images: Float[Tensor, "..."],
    density: float,
    *,
    m: int | None = None,
    block: int = 128,
    damping: float = 0.01,
    batch: int = 64,
    layers: Sequence[str] | None = None,
) -> Sparsifier:
    """Prune a trained model without training, and let what is left make up for what went (arXiv 2301.00774).

    Algorithm 1, the optimal brain surgeon column by column: with the Hessian H = X X^T of a layer's inputs, weights go
    by w^2 / [H^-1]_jj, those of `block` columns at a time, and each takes its error out on the columns to its right.
    Layers go one after the other, each judged by what it reads once those before it are pruned. Masks stay as they are
    in a training that follows.

    Args:
        model: trained; changed in place, at once.
        images: (image, channel, height, width), prepared as for the model; some hundred will do.
        density: kept fraction of each layer's weights, in (0, 1].
        m: keep `density * m` of every `m` consecutive inputs; a layer that does not divide stays dense.
        block: columns whose weights are chosen together.
        damping: added to the Hessian's diagonal, as a share of its mean.
        batch: images at a time.
        layers: name patterns of the layers to prune (default: all linear and convolution layers).

    Raises:
        ValueError: an argument that makes no sense; a density too low for a layer; no such layer, one that is quantized
            or parametrized, or one whose inputs can't be told apart.
    """
    check(block=block, damping=damping, batch=batch)
    pools = arranged(model, images, density, m, element(), layers)
    for pool in (pool for pool in pools if pool.density < 1):
        (unit,) = pool.units
        weight = named_parameters(model)[unit.name]
        hessian = sum(read.T @ read for read in inputs(model, unit, images, batch))
        matrix = weight.flatten(1).to(hessian.dtype)
        weight.copy_(compensated(matrix, hessian, density, m, block, damping).view_as(weight))
    return Sparsifier(model, pools, Prune(magnitude), once(0))


def compensated(
    weight: Float[Tensor, "out in"],
    hessian: Float[Tensor, "in in"],
    density: float,
    m: int | None = None,
    block: int = 128,
    damping: float = 0.01,
) -> Float[Tensor, "out in"]:
    """The weights, pruned to the density, those left corrected for the rest; 0 for an input that is never there."""
    weight, hessian, (rows, columns) = weight.clone(), hessian.clone(), weight.shape
    unread = hessian.diagonal() == 0
    weight[:, unread], hessian.diagonal()[unread] = 0, 1
    hessian.diagonal().add_(damping * hessian.diagonal().mean())
    factor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian)), upper=True)
    block = max(block // m, 1) * m if m else block
    for start in range(0, columns, block):
        stop = min(start + block, columns)
        keep = count(density, rows * stop) - count(density, rows * start)
        here = slice(start, stop)
        errors = _pruned(weight[:, here], factor[here, here], keep, round(density * m) if m else 0, m or 0)
        weight[:, stop:] -= errors @ factor[here, stop:]
    return weight


def _pruned(
    weight: Float[Tensor, "out column"], factor: Float[Tensor, "column column"], keep: int, n: int, m: int
) -> Float[Tensor, "out column"]:
    """Prune these columns in place, to `keep` weights or to `n` of `m`; gives the errors that columns to come pay."""
    errors, worth = torch.zeros_like(weight), factor.diagonal().square()
    alive = top((weight.square() / worth).view(1, -1), keep).view_as(weight)
    for column in range(weight.shape[1]):
        if m and column % m == 0:
            group = slice(column, column + m)
            alive[:, group] = top(weight[:, group].square() / worth[group], n)
        errors[:, column] = weight[:, column].masked_fill(alive[:, column], 0) / factor[column, column]
        weight[:, column:] -= errors[:, column, None] * factor[column, column:]
        weight[:, column].masked_fill_(~alive[:, column], 0)
    return errors
