"""The sparsifier: the only object that knows which weights of a model live, and the only one that changes it."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.optim import Optimizer

from svite.sparsity import mask
from svite.sparsity.attach import Attachment
from svite.sparsity.history import History, Update
from svite.sparsity.layers import named_parameters
from svite.sparsity.optimizers import calm, keep_state, mixes_entries, skipped, unwrapped
from svite.sparsity.pool import Pool
from svite.sparsity.rule import DropGrow, Prune
from svite.sparsity.schedule import Trigger
from svite.sparsity.score import random
from svite.sparsity.scoring import Scorer

if TYPE_CHECKING:
    import pandas as pd


class Sparsifier:
    """Decides which weights live.

    Call `before_step` after backward and `after_step` after the optimizer's step, or `attach` it to the optimizer.
    Masks lie beside the model under its own parameter names, so its state_dict stays timm's. A topology is a function
    of (weights, gradients, seed, step): the same on every rank, whatever the random state.

    Args:
        model: changed in place, now and at each update.
        pools: who competes with whom, at what density.
        rule: how the living are chosen.
        when: at which steps; step 0 is now.
        seed: of random topologies and random growth.
        dense_moments: leave gradients and optimizer state unmasked, as the reference code of SViTE does.

    Set `calm_births` to start newborn weights with the mean second moment of the living: their first steps under Adam
    are then as long as a living weight's, not 4.5 times as long (and end worse where it was measured: docs/LOG.md).
    """

    def __init__(
        self,
        model: nn.Module,
        pools: Sequence[Pool],
        rule: Prune | DropGrow,
        when: Trigger,
        *,
        seed: int = 0,
        dense_moments: bool = False,
    ) -> None:
        self.pools, self.rule, self.when, self.dense_moments = tuple(pools), rule, when, dense_moments
        self.units = {unit.name: unit for pool in pools for unit in pool.units}
        parameters = named_parameters(model)
        self.weights = {name: parameters[name] for unit in self.units.values() for name, _ in unit.parts}
        self.scorer = Scorer(self.units, self.weights, seed)
        self.step, self.calm_births = 0, False
        self._pending, self._stepped, self._watched = False, True, None
        topology = self._initial_topology()
        self.history = History(topology)
        self._set(topology)

    # Topology: one bool a member in `alive`, one bool a weight in `masks`

    def _initial_topology(self) -> dict[str, Tensor]:
        alive = {}
        for pool in self.pools:
            drawn = torch.cat([self.scorer.now(random, unit.name, self.step) for unit in pool.units], dim=1)
            alive |= _split(pool, self.rule.start(drawn, pool))
        return self._selected(alive) if self.when(0) else self._checked(alive)

    def _selected(self, alive: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self.scorer.require_gradients(self.rule.scores)
        chosen = {}
        for pool in self.pools:
            names = [unit.name for unit in pool.units]
            scores = [
                torch.cat([self.scorer.averaged(score, name, self.step) for name in names], dim=1)
                for score in self.rule.scores
            ]
            before = torch.cat([alive[name] for name in names], dim=1)
            chosen |= _split(pool, self.rule.select(pool, before, scores, self.step))
        return self._checked(chosen)

    def _checked(self, alive: dict[str, Tensor]) -> dict[str, Tensor]:
        """The topology itself; ValueError names a layer that it would leave empty."""
        empty = [name for name, members in alive.items() if not members.any()]
        if empty:
            raise ValueError(
                f"The topology of step {self.step} would leave no weight in {', '.join(empty)}; "
                "ask for a higher density, for one pool a layer, or leave these out of `layers`."
            )
        return alive

    @torch.no_grad()
    def _set(self, alive: dict[str, Bool[Tensor, "arena member"]]) -> None:
        self.alive = alive
        self.masks = self._spread(alive)
        self._mask_weights()

    def _spread(self, members: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: cut.spread(members[unit.name], self.weights[name].shape)
            for unit in self.units.values()
            for name, cut in unit.parts
        }

    def _mask_weights(self) -> None:
        for name, weight in self.weights.items():
            weight.mul_(self.masks[name])

    # Training

    @property
    def update_due(self) -> bool:
        """Whether the next `before_step` changes the topology, given finite gradients."""
        done = bool(self.updates) and self.updates[-1].step == self.step  # and then the optimizer's step was skipped
        return self._pending or (self.step > 0 and self.when(self.step) and not done)

    @property
    def wants_dense_gradient(self) -> bool:
        """Whether this step's gradients of dead weights are looked at."""
        ahead = range(1, self.rule.batches)
        return self.update_due or any(self.when(self.step + steps) for steps in ahead)

    def before_step(self, optimizer: Optimizer) -> None:
        """After backward: maybe a new topology, then masked gradients (clip after this, unscale before it).

        Once an optimizer step, however many backward passes it accumulates.

        Raises ValueError for an optimizer that is not known to work with masks, and for missing gradients.
        """
        self.watch(optimizer)
        self._stepped = False
        if self.wants_dense_gradient and self.scorer.gradients_are_finite():
            if self.rule.batches > 1:
                self.scorer.gather(self.rule.scores, self.step)
            if self.update_due:
                self._update(optimizer)
        elif self.update_due:
            self._pending = True
        if not (self.dense_moments or mixes_entries(optimizer)):
            self._mask_gradients()

    @torch.no_grad()
    def after_step(self) -> None:
        """After the optimizer's step: dead weights become exactly zero, and the step counter moves on.

        A step that a gradient scaler skipped does not count.
        """
        self._mask_weights()
        self.step += self._stepped

    def watch(self, optimizer: Optimizer) -> None:
        """Learn from now on whether this optimizer really steps.

        Raises ValueError for one that is not known to work with masks.
        """
        mixes_entries(optimizer)
        inner = unwrapped(optimizer)
        if self._watched is not inner:
            self._watched = inner
            inner.register_step_post_hook(lambda *_: setattr(self, "_stepped", not skipped(inner)))

    def attach(self, optimizer: Optimizer) -> Attachment:
        """Hook into an optimizer, for a loop that is not yours; `.remove()` takes the hooks off again.

        Gradients are masked as they accumulate, so clipping sees them masked; where an update is due they stay dense.
        """
        return Attachment(self, optimizer)

    def _update(self, optimizer: Optimizer) -> None:
        before, after = self.alive, self._selected(self.alive)
        if not self.dense_moments:
            lost = (lambda b, a: a & ~b) if mixes_entries(optimizer) else torch.ne
            fresh = self._spread({name: lost(before[name], after[name]) for name in after})
            keep_state(optimizer, {self.weights[name]: ~changed for name, changed in fresh.items()})
        if self.calm_births:
            born = self._spread({name: after[name] & ~before[name] for name in after})
            calm(optimizer, {self.weights[name]: newborn for name, newborn in born.items()})
        self.history.record(before, after, self.step, self.rule.fraction(self.step))
        self._set(after)
        self._pending = False
        self.scorer.forget()

    @torch.no_grad()
    def _mask_gradients(self) -> None:
        for name, weight in self.weights.items():
            if weight.grad is not None:
                weight.grad.mul_(self.masks[name])

    # The world outside

    @torch.no_grad()
    def apply(self, model: nn.Module) -> None:
        """Zero the dead weights of another copy of the model, an EMA say.

        Raises ValueError naming a weight that the copy lacks or holds in another shape; nothing has changed then.
        """
        parameters = named_parameters(model)
        for name, alive in self.masks.items():
            if name not in parameters or parameters[name].shape != alive.shape:
                raise ValueError(f"The model given has no {name} of shape {tuple(alive.shape)}, which is masked here.")
        for name, alive in self.masks.items():
            parameters[name].mul_(alive.to(parameters[name].device))

    @property
    def density(self) -> float:
        """Alive over prunable weights, counted from the masks."""
        return sum(int(m.sum()) for m in self.masks.values()) / sum(m.numel() for m in self.masks.values())

    @property
    def itop(self) -> float:
        """The share of members that ever lived."""
        return self.history.itop

    @property
    def updates(self) -> list[Update]:
        """Every change of topology so far."""
        return self.history.updates

    def summary(self) -> "pd.DataFrame":
        """One row a unit: shape, asked and achieved density, members born and died, and the share that ever lived."""
        import pandas as pd

        rows = [
            {
                "unit": unit.name,
                "shape": "x".join(map(str, unit.shape)),
                "asked": pool.density,
                "achieved": int(self.alive[unit.name].sum()) / unit.size,
                "born": self.history.born[unit.name],
                "died": self.history.died[unit.name],
                "ever": self.history.ever(unit.name),
            }
            for pool in self.pools
            for unit in pool.units
        ]
        return pd.DataFrame(rows)

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs, as tensors and plain values (loads with `weights_only`)."""
        return {
            "step": self.step,
            "pending": self._pending,
            "shapes": self._shapes,
            "alive": {name: mask.pack(alive) for name, alive in self.alive.items()},
            "history": self.history.state_dict(),
            "scores": self.scorer.state_dict(),
        }

    @property
    def _shapes(self) -> dict[str, list[int]]:
        return {name: [*unit.shape, unit.arenas, unit.members] for name, unit in self.units.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken; dead weights of the model become zero.

        Raises ValueError naming the units that differ; nothing has changed then.
        """
        shapes = self._shapes
        different = sorted(n for n in {*shapes, *state["shapes"]} if shapes.get(n) != state["shapes"].get(n))
        if different:
            raise ValueError(f"The saved topology is of another model: {', '.join(different)} differ.")
        self.step, self._pending = state["step"], state["pending"]
        self.history.load_state_dict(state["history"])
        self.scorer.load_state_dict(state["scores"])
        alive = {name: mask.unpack(bits, tuple(self.alive[name].shape)) for name, bits in state["alive"].items()}
        self._set({name: members.to(self.alive[name].device) for name, members in alive.items()})


def _split(pool: Pool, alive: Bool[Tensor, "arena member"]) -> dict[str, Tensor]:
    pieces = alive.split([unit.members for unit in pool.units], dim=1)
    return {unit.name: piece.contiguous() for unit, piece in zip(pool.units, pieces, strict=True)}
