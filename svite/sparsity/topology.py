"""Which members live: every pool by its rule, from scores, exactly."""

from collections.abc import Collection, Mapping
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from svite.sparsity.history import Topology
from svite.sparsity.living import Contests
from svite.sparsity.pool import Pool
from svite.sparsity.score import random
from svite.sparsity.scoring import Scoring


def first(contests: Contests, scoring: Scoring) -> Topology:
    """Every rule's start, drawn at random where it is random."""
    alive: dict[str, Tensor] = {}
    for pool, rule in contests:
        drawn = torch.cat([scoring.now(random, unit.name, 0) for unit in pool.units], dim=1)
        alive |= _split(pool, rule.start(drawn, pool))
    return alive


def selected(
    contests: Contests, scoring: Scoring, alive: Mapping[str, Tensor], step: int, resting: Collection[str] = ()
) -> Topology:
    """The topology from `step` on. While training goes on, every unit keeps at least one member.

    Units that rest keep their members; the others of their pool compete at the same density.

    Raises ValueError where weights are not finite, and where a score lacks the gradients that it looks at or is NaN.
    """
    scoring.require_finite_weights()
    scoring.require_gradients(tuple(dict.fromkeys(score for _, rule in contests for score in rule.scores)), resting)
    chosen: dict[str, Tensor] = {name: alive[name] for name in resting}
    for whole, rule in contests:
        pool = replace(whole, units=tuple(unit for unit in whole.units if unit.name not in resting))
        if not pool.units:
            continue
        names = [unit.name for unit in pool.units]
        scores = [torch.cat([scoring.averaged(score, name, step) for name in names], dim=1) for score in rule.scores]
        before = torch.cat([alive[name] for name in names], dim=1)
        if step and len(pool.units) > 1 and not pool.may_empty:
            scores[0] = _shielded(scores[0], before, pool)
        chosen |= _split(pool, rule.select(pool, before, scores, step))
    return {unit.name: chosen[unit.name] for pool, _ in contests for unit in pool.units}


def refuse_empty(contests: Contests, alive: Mapping[str, Tensor]) -> None:
    """ValueError names the units that a topology leaves empty, where they may not be."""
    units = [unit.name for pool, _ in contests if not pool.may_empty for unit in pool.units]
    empty = [name for name in units if not alive[name].any()]
    if empty:
        raise ValueError(
            f"This density would leave nothing alive in {', '.join(empty)}; ask for a higher one, for one pool a "
            "layer, or leave these out of `layers` (heads and neurons may go whole with `pool=svite.with_branches`)."
        )


def _shielded(
    scores: Float[Tensor, "arena member"], alive: Bool[Tensor, "arena member"], pool: Pool
) -> Float[Tensor, "arena member"]:
    """The scores, with the best living member of each unit beyond reach."""
    pieces = scores.masked_fill(~alive, -torch.inf).split([unit.members for unit in pool.units], dim=1)
    best = torch.cat(
        [torch.zeros_like(p, dtype=torch.bool).scatter(1, p.argmax(1, keepdim=True), True) for p in pieces], 1
    )
    return scores.masked_fill(best & alive, torch.inf)


def _split(pool: Pool, alive: Bool[Tensor, "arena member"]) -> Topology:
    pieces = alive.split([unit.members for unit in pool.units], dim=1)
    return {unit.name: piece.contiguous() for unit, piece in zip(pool.units, pieces, strict=True)}
