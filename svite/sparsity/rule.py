"""The rules of change: `Prune` never revives, `DropGrow` never changes density, `PruneGrow` lowers it, `Best`
knows no past."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from svite.sparsity import score
from svite.sparsity.arguments import check
from svite.sparsity.mask import newborn, survivors, top
from svite.sparsity.pool import Pool, erk
from svite.sparsity.schedule import Schedule, constant

AT_ONCE = constant(1.0)

Alive = Bool[Tensor, "arena member"]
Scores = Float[Tensor, "arena member"]


@runtime_checkable
class Rule(Protocol):
    """How the living of a pool are chosen, at first and at every update."""

    @property
    def scores(self) -> tuple[score.Score, ...]:
        """What has to be evaluated at an update, in the order that `select` takes; the first says who stays."""

    @property
    def batches(self) -> int:
        """Scores that look at gradients are averaged over so many steps before an update."""

    def start(self, random: Scores, pool: Pool) -> Alive:
        """The first topology, given a random number for each member."""

    def select(self, pool: Pool, alive: Alive, scores: Sequence[Scores], step: int) -> Alive:
        """The members that live from `step` on."""

    def fraction(self, step: int) -> float:
        """The share of the living that an update replaces."""


def exact_start(random: Scores, pool: Pool) -> Alive:
    """A random topology that holds the pool's density to one member."""
    return top(random, pool.keep(pool.density))


def bernoulli_start(random: Scores, pool: Pool) -> Alive:
    """Each member is active with the pool's probability: right in expectation only, as the reference code draws it."""
    return random < pool.density


def erk_start(density: float) -> Callable[[Scores, Pool], Alive]:
    """A random topology of this density, the pool's where that is higher, spread over the pool's units by ERK."""

    def start(random: Scores, pool: Pool) -> Alive:
        pieces = random.split([unit.members for unit in pool.units], dim=1)
        shares = erk(pool.units, max(density, pool.density))
        return torch.cat([top(piece, one.keep(one.density)) for piece, one in zip(pieces, shares, strict=True)], 1)

    return start


@dataclass(frozen=True)
class Prune:
    """Keep the best by `score`; `ramp` goes from 0 (dense) to 1 (the pool's density).

    The score is averaged over the last `batches` steps before an update.
    """

    score: score.Score
    ramp: Schedule = AT_ONCE
    batches: int = 1

    def __post_init__(self) -> None:
        check(batches=self.batches)

    @property
    def scores(self) -> tuple[score.Score, ...]:
        """What has to be evaluated at an update, in the order that `select` takes."""
        return (self.score,)

    def start(self, random: Scores, pool: Pool) -> Alive:
        """All alive."""
        return torch.ones_like(random, dtype=torch.bool)

    def select(self, pool: Pool, alive: Alive, scores: Sequence[Scores], step: int) -> Alive:
        """The members that live from `step` on."""
        density = pool.density + (1 - pool.density) * (1 - self.ramp(step))
        return survivors(scores[0], alive, pool.keep(density))

    def fraction(self, step: int) -> float:
        """The share of the living that an update replaces: none."""
        return 0.0


@dataclass(frozen=True)
class Best:
    """Keep the best by `score` whether they live or not; `ramp` goes from 0 (dense) to 1 (the pool's density) and back.

    The dead come back where the ramp falls: at 0 all of them.
    """

    score: score.Score
    ramp: Schedule
    batches: int = 1

    def __post_init__(self) -> None:
        check(batches=self.batches)

    @property
    def scores(self) -> tuple[score.Score, ...]:
        """What has to be evaluated at an update, in the order that `select` takes."""
        return (self.score,)

    def start(self, random: Scores, pool: Pool) -> Alive:
        """All alive."""
        return torch.ones_like(random, dtype=torch.bool)

    def select(self, pool: Pool, alive: Alive, scores: Sequence[Scores], step: int) -> Alive:
        """The members that live from `step` on."""
        return top(scores[0], pool.keep(pool.density + (1 - pool.density) * (1 - self.ramp(step))))

    def fraction(self, step: int) -> float:
        """The share of the living that an update replaces: none."""
        return 0.0


@dataclass(frozen=True)
class DropGrow:
    """Drop the `fraction` of the living that is worst by `drop`, grow as many by `grow`.

    What was just dropped may grow again at once, and then was alive throughout (as in RigL and SViTE). Where the births
    do not divide among the arenas, those whose weakest member is worth least make one more.
    """

    drop: score.Score
    grow: score.Score
    fraction: Schedule
    start: Callable[[Scores, Pool], Alive] = exact_start
    batches: int = 1

    def __post_init__(self) -> None:
        check(batches=self.batches, fraction=self.fraction(0))

    @property
    def scores(self) -> tuple[score.Score, ...]:
        """What has to be evaluated at an update, in the order that `select` takes."""
        return (self.drop, self.grow)

    def select(self, pool: Pool, alive: Alive, scores: Sequence[Scores], step: int) -> Alive:
        """The members that live from `step` on; as many as before in each arena.

        Raises ValueError for a fraction outside [0, 1].
        """
        if pool.density == 1:
            return alive
        fraction = self.fraction(step)
        check(fraction=fraction)
        births, left = divmod(int(fraction * int(alive.count_nonzero()) + 0.5), len(alive))
        changed = self._replace(alive, scores, births)
        if not left:
            return changed
        weakest = scores[0].masked_fill(~alive, torch.inf).amin(1)
        chosen = top(-weakest[None], left)[0]
        return torch.where(chosen[:, None], self._replace(alive, scores, births + 1), changed)

    def _replace(self, alive: Alive, scores: Sequence[Scores], births: int) -> Alive:
        kept = survivors(scores[0], alive, int(alive[0].count_nonzero()) - births)
        return kept | newborn(scores[1], kept, births)


@dataclass(frozen=True)
class PruneGrow(DropGrow):
    """Prune the worst of the whole pool by `drop`, then drop and grow as `DropGrow` does within each unit.

    `ramp` goes from 0 (the `initial` density) to 1 (the pool's).
    """

    ramp: Schedule = AT_ONCE
    initial: float = 1.0

    def select(self, pool: Pool, alive: Alive, scores: Sequence[Scores], step: int) -> Alive:
        """The members that live from `step` on."""
        first = max(self.initial, pool.density)
        left = survivors(scores[0], alive, pool.keep(first + (pool.density - first) * self.ramp(step)))
        sizes = [unit.members for unit in pool.units]
        pieces = zip(pool.units, *(values.split(sizes, dim=1) for values in (left, *scores)), strict=True)
        select = super().select
        return torch.cat([select(replace(pool, units=(unit,)), mine, seen, step) for unit, mine, *seen in pieces], 1)
