"""What a weight is worth: elementwise scores. A member's is the absolute value of their sum; higher is better."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Generator, Tensor


class Evidence(NamedTuple):
    """What a score may look at: one weight, its gradient, a generator that is a function of (seed, step, unit), and
    whether it carries a member's output on (`Part.outgoing`)."""

    weight: Float[Tensor, "*weight"]
    gradient: Float[Tensor, "*weight"] | None
    generator: Generator
    outgoing: bool = True


Score = Callable[[Evidence], Float[Tensor, "*weight"]]


def magnitude(seen: Evidence) -> Float[Tensor, "*weight"]:
    """|w|."""
    return seen.weight.abs()


def gradient(seen: Evidence) -> Float[Tensor, "*weight"]:
    """|dL/dw| of outgoing weights, dead ones too: what they could do for the loss at once (RigL, arXiv 1911.11134)."""
    return seen.gradient.abs() if seen.outgoing else torch.zeros_like(seen.weight)


def saliency(seen: Evidence) -> Float[Tensor, "*weight"]:
    """|w dL/dw| (SNIP, arXiv 1810.02340)."""
    return (seen.weight * seen.gradient).abs()


def taylor(seen: Evidence) -> Float[Tensor, "*weight"]:
    """(w dL/dw)^2, the squared first-order change of the loss (arXiv 1906.10771, equation 8)."""
    return (seen.weight * seen.gradient).square()


def output_change(seen: Evidence) -> Float[Tensor, "*weight"]:
    """w dL/dw of outgoing weights: summed over a member, what the loss changes when its output goes, to first order.

    It is the output times its gradient, summed over a batch, in which images cancel. Arxiv 2106.04533, section 3.2, and
    1905.10650, equation 2, take the mean over images of the absolute value, and so does `svite.sparsity.scoring`
    wherever a unit has a `reader`; only units without one are scored by the batch's sum.
    """
    return seen.weight * seen.gradient if seen.outgoing else torch.zeros_like(seen.weight)


def random(seen: Evidence) -> Float[Tensor, "*weight"]:
    """Uniform in [0, 1), drawn on the CPU so that every device draws the same."""
    shape, device = seen.weight.shape, seen.weight.device
    return torch.rand(shape, generator=seen.generator).to(device)


NEEDS_GRADIENT = frozenset({gradient, saliency, taylor, output_change})
IMAGE_BY_IMAGE = frozenset({output_change})
