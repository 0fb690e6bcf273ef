"""The sparsifier: the only object that knows which weights of a model live, and the only one that changes it."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.optim import Optimizer

from svite.sparsity import mask, topology, waiting
from svite.sparsity.attach import Attachment
from svite.sparsity.cut import Unit
from svite.sparsity.history import History, Update
from svite.sparsity.layers import uncovered
from svite.sparsity.names import named_parameters
from svite.sparsity.optimizers import calm, keep_state, mixes_entries, skipped, unwrapped
from svite.sparsity.pool import Pool
from svite.sparsity.proximal import Proximal, pull
from svite.sparsity.ready import refuse_unready
from svite.sparsity.rule import DropGrow, Rule
from svite.sparsity.schedule import Trigger
from svite.sparsity.score import NEEDS_GRADIENT
from svite.sparsity.scoring import Scorer
from svite.sparsity.sharded import at_rest, is_sharded, refuse_replaced, shard_like

if TYPE_CHECKING:
    import pandas as pd


class Sparsifier:
    """Decides which weights live.

    Call `before_step` after backward and `after_step` after the optimizer's step, or `attach` it to the optimizer.
    Masks lie beside the model under its own parameter names, so its state_dict stays timm's. A topology is a function
    of (weights, gradients, seed, step): the same on every rank, whatever the random state.

    Build it after `fully_shard` (FSDP2): masks are then DTensors sharded as their weights are, and beside them every
    rank holds who lives at one bit a member. An update gathers scores, one weight at a time; no mask is ever sent.

    Args:
        model: changed in place, now and at each update.
        pools: who competes with whom, at what density.
        rule: how the living are chosen: one rule, or one a pool.
        when: at which steps; step 0 is now.
        seed: of random topologies, random growth and weights in waiting.
        dense_moments: leave gradients and optimizer state unmasked, as the reference code of SViTE does.

    Set `calm_births` to start newborn weights with the mean second moment of the living: their first steps under Adam
    are then as long as a living weight's, not 4.5 times as long (and end worse where it was measured: docs/LOG.md).
    """

    def __init__(
        self,
        model: nn.Module,
        pools: Sequence[Pool],
        rule: Rule | Sequence[Rule],
        when: Trigger,
        *,
        seed: int = 0,
        dense_moments: bool = False,
    ) -> None:
        self.pools, self.when, self.seed, self.dense_moments = tuple(pools), when, seed, dense_moments
        self.rules = tuple(rule) if isinstance(rule, Sequence) else (rule,) * len(self.pools)
        self.contests = tuple(zip(self.pools, self.rules, strict=True))
        self.units = {unit.name: unit for pool in pools for unit in pool.units}
        parameters = named_parameters(model)
        refuse_unready(parameters)
        self.weights = {part.name: parameters[part.name] for unit in self.units.values() for part in unit.parts}
        self.uncovered = uncovered(parameters, self.weights)
        self.scorer = Scorer(self.units, self.weights, seed)
        self.step, self.calm_births = 0, False
        self._pending, self._stepped, self._watched = False, True, None
        start = topology.first(self.contests, self.scorer)
        if when(0):
            start = topology.selected(self.contests, self.scorer, start, 0)
        topology.refuse_empty(self.contests, start)
        self.history = History(start)
        self._set(start)
        if self.waits:
            model.register_forward_pre_hook(waiting.BeforeForward(self), prepend=True)

    @torch.no_grad()
    def _set(self, alive: dict[str, Bool[Tensor, "arena member"]]) -> None:
        self._hold(alive)
        self._mask_weights()

    def _hold(self, alive: dict[str, Bool[Tensor, "arena member"]]) -> None:
        self.alive = mask.Packed(alive) if is_sharded(self.weights.values()) else alive
        self.masks = self._spread(alive.items(), self.weights)

    def _spread(self, topology: Iterable[tuple[str, Tensor]], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            part.name: shard_like(part.cut.spread(members, weights[part.name].shape), weights[part.name])
            for unit, members in topology
            for part in self.units[unit].parts
        }

    def _mask_weights(self) -> None:
        for name, weight in self.weights.items():
            mask.silence(weight, self.masks[name])

    @cached_property
    def waits(self) -> list[Unit]:
        """Units whose dead heads or neurons may be born, and wait for it with random incoming weights."""
        growing = [pool for pool, rule in self.contests if isinstance(rule, DropGrow)]
        return [unit for pool in growing for unit in pool.units if unit.is_structure]

    # Training

    @property
    def update_due(self) -> bool:
        """Whether the next `before_step` changes the topology, given finite gradients."""
        done = bool(self.updates) and self.updates[-1].step == self.step  # and then the optimizer's step was skipped
        return self._pending or (self.step > 0 and self.when(self.step) and not done)

    @property
    def _looking(self) -> bool:
        """Whether this step's scores enter an update."""
        return self.update_due or any(self.when(self.step + steps) for steps in range(1, self.batches))

    @property
    def wants_dense_gradient(self) -> bool:
        """Whether this step's gradients of dead weights are looked at."""
        grows = [rule.grow for rule in self.rules if isinstance(rule, DropGrow)]
        return not NEEDS_GRADIENT.isdisjoint(grows) and self._looking

    @cached_property
    def batches(self) -> int:
        """Over how many steps before an update its scores are averaged."""
        return max(rule.batches for rule in self.rules)

    def fraction(self, step: int) -> float:
        """The share of the living that an update at `step` replaces, the largest of all pools."""
        return max(rule.fraction(step) for rule in self.rules)

    def before_step(self, optimizer: Optimizer) -> None:
        """After backward: maybe a new topology, then masked gradients (clip after this, unscale before it).

        Once an optimizer step, however many backward passes it accumulates.

        Raises ValueError for an optimizer that is not known to work with masks, and for missing gradients.
        """
        self.watch(optimizer)
        self._stepped = False
        if self._looking and self.scorer.gradients_are_finite():
            if self.batches > 1:
                self.scorer.gather({score for rule in self.rules for score in rule.scores}, self.step)
            if self.update_due:
                self._update(optimizer)
        elif self.update_due:
            self._pending = True
        for name in self.masked_gradients(optimizer):
            if self.weights[name].grad is not None:
                mask.silence(self.weights[name].grad, self.masks[name])

    @torch.no_grad()
    def after_step(self) -> None:
        """After the optimizer's step: dead weights become exactly zero, and the step counter moves on.

        A step that a gradient scaler skipped does not count.
        """
        self._mask_weights()
        if self._stepped:
            for pool, rule in self.contests:
                if isinstance(rule, Proximal):
                    pull(pool, rule, self.weights, self._watched, self.step)
            self.step += 1

    def masked_gradients(self, optimizer: Optimizer) -> list[str]:
        """The parameters whose gradients this optimizer gets masked.

        One that mixes entries gets them dense, but for whole rows and columns: without them the rest mixes as a smaller
        matrix would.
        """
        if self.dense_moments:
            return []
        mixes = mixes_entries(optimizer)
        return [p.name for unit in self.units.values() for p in unit.parts if unit.is_structure or not mixes]

    def lay_waiting(self, model: nn.Module) -> None:
        """Before the forward pass of a step that decides on births: weights for heads and neurons in waiting."""
        if self._looking:
            ahead = (self.step + steps for steps in range(self.batches))
            update = next((step for step in ahead if self.when(step)), self.step)
            at_rest(model)
            waiting.lay(self.waits, self.weights, self.masks, self.seed, update)

    def watch(self, optimizer: Optimizer) -> None:
        """Learn from now on whether this optimizer really steps.

        Raises ValueError for one that is not known to work with masks.
        """
        mixes_entries(optimizer)
        inner = unwrapped(optimizer)
        if self._watched is not inner:
            refuse_replaced(self.weights, inner)
            self._watched = inner
            inner.register_step_post_hook(lambda *_: setattr(self, "_stepped", not skipped(inner)))

    def attach(self, optimizer: Optimizer) -> Attachment:
        """Hook into an optimizer, for a loop that is not yours; `.remove()` takes the hooks off again.

        Gradients are masked as they accumulate, so clipping sees them masked; where an update is due they stay dense.
        The optimizer's state_dict carries this one's, so a loop that resumes its optimizer resumes the topology.

        Raises ValueError for an optimizer that is not known to work with masks; later, when a state without a topology
        or with another model's is loaded into it.
        """
        return Attachment(self, optimizer)

    def _update(self, optimizer: Optimizer) -> None:
        before, after = self.alive, topology.selected(self.contests, self.scorer, self.alive, self.step)
        born = self._spread(((name, after[name] & ~before[name]) for name in after), self.weights)
        if not self.dense_moments:
            changed = self._spread(((name, after[name] ^ before[name]) for name in after), self.weights)
            fresh = born | {name: changed[name] for name in self.masked_gradients(optimizer)}
            keep_state(optimizer, {weight: ~fresh[name] for name, weight in self.weights.items()})
        if self.calm_births:
            calm(optimizer, {weight: born[name] for name, weight in self.weights.items()})
        self.history.record(before, after, self.step, self.fraction(self.step))
        self._set(after)
        self._pending = False
        self.scorer.forget()

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
        for name, alive in self._spread(self.alive.items(), parameters).items():
            mask.silence(parameters[name], alive.to(parameters[name].device))

    @property
    def density(self) -> float:
        """Alive over all weights of the units, counted from the topology, whole on every rank.

        What no unit holds does not count: position embeddings, recurrent layers and all else that `uncovered` names.
        """
        sizes = {u.name: sum(self.weights[part.name].numel() for part in u.parts) for u in self.units.values()}
        alive = sum(int(self.alive[name].sum()) * sizes[name] // unit.size for name, unit in self.units.items())
        return alive / sum(sizes.values())

    @property
    def itop(self) -> float:
        """The share of members that ever lived."""
        return self.history.itop

    @property
    def updates(self) -> list[Update]:
        """Every change of topology so far."""
        return self.history.updates

    def summary(self) -> "pd.DataFrame":
        """One row a unit: shape, asked and achieved density, members born and died, and the share that ever lived.

        Then one for each matrix that no unit holds: it is dense, nothing was asked of it, and no density counts it.
        """
        return self.history.table(self.pools, self.alive, self.uncovered)

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs, as tensors and plain values (loads with `weights_only`).

        It is the same whether weights are sharded or not, on however many ranks; where they are, all have to ask.
        """
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
        self.restore(state)
        self._mask_weights()

    def restore(self, state: Mapping[str, Any]) -> None:
        """As `load_state_dict`, but for the weights, which the same checkpoint brings along, sooner or later."""
        shapes = self._shapes
        different = sorted(n for n in {*shapes, *state["shapes"]} if shapes.get(n) != state["shapes"].get(n))
        if different:
            raise ValueError(f"The saved topology is of another model: {', '.join(different)} differ.")
        self.step, self._pending = state["step"], state["pending"]
        self.history.load_state_dict(state["history"])
        self.scorer.load_state_dict(state["scores"])
        alive = {name: mask.unpack(bits, tuple(self.alive[name].shape)) for name, bits in state["alive"].items()}
        self._hold({name: members.to(self.alive[name].device) for name, members in alive.items()})
