"""Penalties: a pull on every member that kills the weak while training goes on, then a cut to the asked density."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import torch
from jaxtyping import Float
from torch import Tensor

from svite.sparsity.arguments import check
from svite.sparsity.mask import survivors
from svite.sparsity.pool import Pool
from svite.sparsity.rule import Alive, Scores
from svite.sparsity.schedule import Schedule, Trigger, constant, ending
from svite.sparsity.score import Score, magnitude


@dataclass(frozen=True)
class Penalty:
    """Shorten every member a little at each step; an update prunes what is at zero, and `last` cuts to the density.

    The step is the proximal one of the group lasso, sqrt(size) times the member's length (arXiv 1608.03665, equation
    3), which is that of l1 where members are single weights. Until `last` nothing is pruned beyond the pool's density.
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
        """What each member is multiplied by, 1 - step_size strength sqrt(size) / norm or 0; None for no pull."""
        strength = 0.0 if step >= self.last else self.strength(step)
        if not strength:
            return None
        pull = step_size * strength * sqrt(size)
        return (1 - pull / norms.clamp(min=torch.finfo(norms.dtype).tiny)).clamp(min=0)

    def select(self, pool: Pool, alive: Alive, scores: Sequence[Scores], step: int) -> Alive:
        """The members that live from `step` on."""
        best = survivors(scores[0], alive, pool.keep(pool.density))
        return best if step >= self.last else best | (alive & (scores[0] > 0))

    def fraction(self, step: int) -> float:
        """The share of the living that an update replaces: none."""
        return 0.0


def penalties(
    pools: Sequence[Pool], steps: int, *, strength: float, interval: int, until: float
) -> tuple[list[Penalty], Trigger]:
    """The rule of each pool, and the steps of its updates: all are pulled alike until `until * steps`, and then cut.

    A pool that loses no member is not pulled either.

    Raises ValueError for a strength that is no number of 0 or more, and for a cut that would never come.
    """
    check(strength=strength, steps=steps, until=until)
    last = max(int(until * steps), 1)
    if not 0 < until < 1 or last >= steps:
        raise ValueError(f"`until` is {until} of {steps} steps; the penalty must end between the first and the last.")
    rules = [Penalty(constant(strength if pool.density < 1 else 0.0), last) for pool in pools]
    return rules, ending(interval, last)
