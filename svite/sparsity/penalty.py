"""Penalties: a pull on every member that kills the weak while training goes on, then a cut to the asked density."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import torch
from jaxtyping import Float
from torch import Tensor, nn

from svite.sparsity.mask import survivors
from svite.sparsity.pool import Pool
from svite.sparsity.rule import Alive, Scores
from svite.sparsity.schedule import Schedule, constant, every
from svite.sparsity.score import Score, magnitude
from svite.sparsity.sparsifier import Sparsifier


@dataclass(frozen=True)
class Penalty:
    """Shorten every member a little at each step; who is at zero at an update is dead, and `last` cuts to the density.

    The step is the proximal one of the group lasso, sqrt(size) times the member's length (arXiv 1608.03665, equation
    3), which is that of l1 where members are single weights. Until `last` nobody dies beyond the pool's density.
    """

    strength: Schedule
    last: int
    batches: int = 1

    @property
    def scores(self) -> tuple[Score, ...]:
        """What has to be evaluated at an update, in the order that `select` takes."""
        return (magnitude,)

    def start(self, random: Scores, pool: Pool) -> Alive:
        """All alive."""
        return torch.ones_like(random, dtype=torch.bool)

    def proximal(
        self, norms: Float[Tensor, "arena member"], size: float, step_size: float, step: int
    ) -> Float[Tensor, "arena member"] | None:
        """What each member is multiplied by, 1 - step_size strength sqrt(size) / norm or 0; None from `last` on."""
        if step >= self.last:
            return None
        pull = step_size * self.strength(step) * sqrt(size)
        return (1 - pull / norms.clamp(min=torch.finfo(norms.dtype).tiny)).clamp(min=0)

    def select(self, pool: Pool, alive: Alive, scores: Sequence[Scores], step: int) -> Alive:
        """The members that live from `step` on."""
        best = survivors(scores[0], alive, pool.keep(pool.density))
        return best if step >= self.last else best | (alive & (scores[0] > 0))

    def fraction(self, step: int) -> float:
        """The share of the living that an update replaces: none."""
        return 0.0


def penalised(
    model: nn.Module, pools: Sequence[Pool], steps: int, *, strength: float, interval: int, until: float
) -> Sparsifier:
    """A sparsifier whose pools are all pulled with the same strength until `until * steps`, and then cut.

    Raises ValueError for a strength below zero.
    """
    if not strength >= 0:
        raise ValueError(f"The strength of the penalty is {strength}; it must not be below 0.")
    last = max(int(until * steps), 1)
    first = last - (last - 1) // max(interval, 1) * interval
    return Sparsifier(model, pools, Penalty(constant(strength), last), every(interval, until=last, begin=first))
