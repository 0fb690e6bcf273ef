"""What a weight is worth: elementwise scores, higher is better, summed over the elements of a member."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Generator, Tensor


class Evidence(NamedTuple):
    """What a score may look at: one weight, its gradient, and a generator that is a function of (seed, step, unit)."""

    weight: Float[Tensor, "..."]
    gradient: Float[Tensor, "..."] | None
    generator: Generator


Score = Callable[[Evidence], Tensor]


def magnitude(seen: Evidence) -> Tensor:
    """|w|."""
    return seen.weight.abs()


def gradient(seen: Evidence) -> Tensor:
    """|dL/dw|, of dead weights too (RigL, arXiv 1911.11134)."""
    return seen.gradient.abs()


def saliency(seen: Evidence) -> Tensor:
    """|w dL/dw| (SNIP, arXiv 1810.02340)."""
    return (seen.weight * seen.gradient).abs()


def taylor(seen: Evidence) -> Tensor:
    """(w dL/dw)^2, the squared first-order change of the loss (arXiv 1906.10771, equation 8)."""
    return (seen.weight * seen.gradient).square()


def random(seen: Evidence) -> Tensor:
    """Uniform in [0, 1), drawn on the CPU so that every device draws the same."""
    shape, device = seen.weight.shape, seen.weight.device
    return torch.rand(shape, generator=seen.generator).to(device)


NEEDS_GRADIENT = frozenset({gradient, saliency, taylor})
