"""Scores of a model's members: now, or averaged over the last batches."""

import hashlib
from collections.abc import Collection, Mapping
from itertools import chain
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from svite.sparsity.living import Living
from svite.sparsity.outputs import Outputs
from svite.sparsity.score import IMAGE_BY_IMAGE, NEEDS_GRADIENT, Evidence, Score
from svite.sparsity.sharded import dealt, full_tensor


def seeded(seed: int, step: int, name: str) -> torch.Generator:
    """A generator that is a function of its arguments, so that no random state is kept and all ranks draw alike."""
    digest = hashlib.sha256(f"{seed}/{step}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def _finite(values: Float[Tensor, "..."]) -> bool:
    # A sum is finite of finite numbers only, and takes a thirtieth of the time; of many large ones it may overflow.
    return bool(full_tensor(values.sum()).isfinite()) or bool(full_tensor(values.isfinite().all()))


def _single(values: Tensor | None) -> Tensor | None:
    """Half precision as single: squares of small gradients would be zeros, all equal."""
    return values.float() if values is not None and values.dtype.itemsize < 4 else values


class Scoring:
    """Evaluates scores of units, and keeps running sums of those that are averaged over batches.

    Where weights are sharded, every rank has to call alike: a score is made of shards and gathered, and sums are dealt
    out over the ranks.
    """

    def __init__(self, living: Living, seed: int) -> None:
        self.living, self.seed, self.outputs = living, seed, Outputs()
        self._sums: dict[str, dict[str, Tensor]] = {}
        self._batches = 0

    @torch.no_grad()
    def now(self, score: Score, unit: str, step: int) -> Float[Tensor, "arena member"]:
        """The score of a unit's members from its present weights and gradients, and from outputs that were heard."""
        if score in IMAGE_BY_IMAGE and unit in self.outputs.listeners:
            return self.outputs.change(self.living.units[unit], self.living.units, self.living.weights)
        values = {}
        for part in self.living.units[unit].parts:
            weight, generator = self.living.weights[part.name], seeded(self.seed, step, part.name)
            seen = Evidence(_single(weight.detach()), _single(weight.grad), generator, part.outgoing)
            values[part.name] = full_tensor(score(seen))
        return self.living.units[unit].gather(values).abs()

    def averaged(self, score: Score, unit: str, step: int) -> Float[Tensor, "arena member"]:
        """The mean over the batches gathered so far, or the present score if not all were gathered of this unit.

        Raises ValueError naming a unit with a member whose score is not a number, and so neither high nor low.
        """
        sums = self._sums.get(score.__name__, {})
        values = full_tensor(sums[unit]) / self._batches if unit in sums else self.now(score, unit, step)
        if bool(values.sum().isnan()):  # none is negative, so infinite ones do not cancel
            raise ValueError(f"The score '{score.__name__}' is NaN for members of {unit}; it must order all of them.")
        return values

    def gather(self, scores: set[Score], step: int, resting: Collection[str] = ()) -> None:
        """Add the present values of the scores that look at gradients; a unit that rests begins anew next time."""
        self._batches += 1
        for score in NEEDS_GRADIENT.intersection(scores):
            sums = self._sums.setdefault(score.__name__, {})
            for unit in self.living.units:
                if unit in resting:
                    sums.pop(unit, None)
                elif unit in sums or self._batches == 1:
                    value = self._dealt(unit, self.now(score, unit, step))
                    sums[unit] = sums[unit].add_(value) if unit in sums else value

    def _dealt(self, unit: str, members: Float[Tensor, "arena member"]) -> Float[Tensor, "arena member"]:
        return dealt(members, self.living.weights[self.living.units[unit].parts[0].name])

    def follow_outputs(self) -> None:
        """Listen to the units, of all that live, whose outputs a score is of."""
        asked = [pool.units for pool, rule in self.living.contests if not IMAGE_BY_IMAGE.isdisjoint(rule.scores)]
        self.outputs.follow(self.living.model, chain.from_iterable(asked), self.living.weights)

    def forget(self) -> None:
        """Start the averages anew."""
        self._sums, self._batches = {}, 0

    def gradients_are_finite(self) -> bool:
        """Whether every gradient there is holds finite numbers only."""
        return all(_finite(w.grad) for w in self.living.weights.values() if w.grad is not None)

    def require_finite_weights(self) -> None:
        """ValueError naming a weight that holds NaN or infinity."""
        for name, weight in self.living.weights.items():
            if not _finite(weight.detach()):
                raise ValueError(f"{name} holds NaN or infinite values, from which no topology can be chosen.")

    def require_gradients(self, scores: tuple[Score, ...], resting: Collection[str] = ()) -> None:
        """ValueError naming a weight without the finite gradient that one of the scores looks at, of units at work."""
        asking = [score.__name__ for score in scores if score in NEEDS_GRADIENT]
        if not asking:
            return
        working = [unit for unit in self.living.units.values() if unit.name not in resting]
        for name in (part.name for unit in working for part in unit.parts):
            weight = self.living.weights[name]
            if weight.grad is None or not _finite(weight.grad):
                raise ValueError(
                    f"{name} has no {'' if weight.grad is None else 'finite '}gradient, which the score '{asking[0]}' "
                    "needs; run a backward pass through every prunable layer first."
                )

    def state_dict(self) -> dict[str, Any]:
        """The running sums, whole."""
        sums = {s: {unit: full_tensor(value).clone() for unit, value in sums.items()} for s, sums in self._sums.items()}
        return {"sums": sums, "batches": self._batches}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with saved sums."""
        device = next(iter(self.living.weights.values())).device
        self._sums = {
            s: {unit: self._dealt(unit, v.to(device)) for unit, v in sums.items()} for s, sums in state["sums"].items()
        }
        self._batches = state["batches"]
