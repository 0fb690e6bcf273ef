"""The sparsifier: the only object that knows which weights of a model live, and the only one that changes it."""

import warnings
from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from itertools import count
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from svite.sparsity import candidates, mask, topology
from svite.sparsity.attach import Attachment, attached_to, owners, tell_of_loaded
from svite.sparsity.living import Living, Rebound
from svite.sparsity.optimizers import (
    mixes_entries,
    reset_optimizer_state,
    skipped,
    supported,
    tell_of_factored,
    trained_by,
)
from svite.sparsity.ownership import enumerated, frozen, refuse_replaced, refuse_shared, refuse_untrained
from svite.sparsity.pool import Pool
from svite.sparsity.proximal import Proximal, pull
from svite.sparsity.rule import DropGrow, Rule
from svite.sparsity.schedule import Trigger
from svite.sparsity.score import NEEDS_GRADIENT
from svite.sparsity.scoring import Scoring
from svite.sparsity.sharded import at_rest, local_shard
from svite.sparsity.state import plan, refuse_other

_clock = count(1)  # of events of this process


class Sparsifier(Living):
    """Decides which weights live.

    Call `before_step` after backward and `after_step` after the optimizer's step, or `attach` it to the optimizer.
    Masks lie beside the model under its own parameter names, so its state_dict stays timm's. A topology is a function
    of (weights, gradients, seed, step): the same on every rank, whatever the random state.

    A step is refused if a weight is no longer the model's (`rebind` follows) or trains in no optimizer. The topology of
    what is frozen (`requires_grad=False`) rests until it trains. Copied with the model and the optimizers, as a tuple
    (`copy.deepcopy`), it goes on as the original does.

    Build it after `fully_shard` (FSDP2): masks are then DTensors sharded as their weights are, and beside them every
    rank holds which members are active, at one bit each. An update gathers scores, one weight at a time; no mask is
    ever sent.

    Args:
        model: changed in place, now and at each update.
        pools: who competes with whom, at what density.
        rule: how the living are chosen: one rule, or one a pool.
        when: at which steps; step 0 is now.
        seed: of random topologies, random growth and re-initialised candidates.
        dense_moments: leave gradients and optimizer state unmasked, as the reference code of SViTE does.
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
        rules = rule if isinstance(rule, Sequence) else (rule,) * len(pools)
        if len(rules) != len(pools):
            raise ValueError(f"There are {len(rules)} rules for {len(pools)} pools; give one rule, or one a pool.")
        super().__init__(model, tuple(zip(pools, rules, strict=True)))
        self.when, self.seed, self.dense_moments = when, seed, dense_moments
        self.step, self._pending = 0, False
        self._built, self._begun = next(_clock), 0  # when, and when the step that goes on by hand, if one does
        self._stepped = False  # whether an optimizer has taken it
        self._restored = False  # whether a state was ever loaded
        self.attachment: Attachment | None = None
        self._watched: dict[Optimizer, RemovableHandle] = {}
        self._before_forward: tuple[RemovableHandle, ...] = ()
        self._resting: frozenset[str] = frozenset()
        self.followers: list[candidates.BeforeForward] = []  # hooks of the model that ask this sparsifier
        self.reinitialises, self._reinitialised = True, ()  # whether at all, and the versions that this left
        self.scoring = Scoring(self, seed)
        self.scoring.follow_outputs()
        start = topology.first(self.contests, self.scoring)
        if when(0):
            start = topology.selected(self.contests, self.scoring, start, 0)
        topology.refuse_empty(self.contests, start)
        self.begin(start)
        candidates.disable_earlier(model, self.weights)
        self._reinitialise_before_forward()

    def _reinitialise_before_forward(self) -> None:
        for handle in self._before_forward:
            handle.remove()
        if self.candidates or self.scoring.outputs.listeners:
            self.followers.append(candidates.BeforeForward(self))
            self._before_forward = (self.model.register_forward_pre_hook(self.followers[-1], prepend=True),)

    def __deepcopy__(self, memo: dict) -> "Sparsifier":
        if self._begun:
            raise ValueError("A copy would not end the step that goes on; copy after `after_step`.")
        copy = memo[id(self)] = object.__new__(type(self))
        own = {name: value for name, value in vars(self).items() if name not in ("attachment", "_watched")}
        vars(copy).update(deepcopy(own, memo), attachment=None, _watched={})
        for follower in copy.followers:
            follower.sparsifier = copy
        copy.scoring.outputs.go_on_as(self.scoring.outputs)
        if self.attachment:
            copy.attach(*deepcopy(self.attachment.optimizers, memo)).go_on_as(self.attachment, memo)
        return copy

    def __reduce__(self) -> str | tuple:
        raise TypeError("A sparsifier is neither pickled nor copied in part: save `state_dict()`, or `deepcopy` it.")

    # Training

    @property
    def _now(self) -> int:
        """The step that gradients are for: the next one, while optimizers of the last may still come."""
        return self.step + bool(self.attachment and self.attachment.is_open and self._stepped)

    @property
    def update_due(self) -> bool:
        """Whether the next `before_step` changes the topology, given finite gradients."""
        now = self._now
        done = bool(self.updates) and self.updates[-1].step == now  # and then the optimizer's step was skipped
        return self._pending or (now > 0 and self.when(now) and not done)

    @property
    def _is_scoring_step(self) -> bool:
        """Whether this step's scores enter an update."""
        return self.update_due or any(self.when(self._now + steps) for steps in range(1, self.batches))

    @property
    def wants_dense_gradient(self) -> bool:
        """Whether this step's gradients of dead weights are looked at."""
        grows = [rule.grow for rule in self.rules if isinstance(rule, DropGrow)]
        return not NEEDS_GRADIENT.isdisjoint(grows) and self._is_scoring_step

    @property
    def batches(self) -> int:
        """Over how many steps before an update its scores are averaged."""
        return max(rule.batches for rule in self.rules)

    def fraction(self, step: int) -> float:
        """The share of the living that an update at `step` replaces, the largest of all pools."""
        return max(rule.fraction(step) for rule in self.rules)

    def before_step(self, *optimizers: Optimizer) -> None:
        """After backward: maybe a new topology, then masked gradients (clip after this, unscale before it).

        Once a step, with all the optimizers that take part in it, however many backward passes it accumulates.

        Raises ValueError for an optimizer that is not known to work with masks, for weights that are not the model's,
        that none of the optimizers trains or that another sparsifier masks in this step, for missing gradients, after
        a step without `after_step`, and while attached.
        """
        self._refuse_attached()
        if self._begun and self._stepped:
            raise ValueError("A step has no `after_step`; call it when the optimizers have stepped, before the next.")
        self.prepare(optimizers)
        self._begun = next(_clock)

    def after_step(self) -> None:
        """After the optimizers' steps: dead weights become exactly zero, and the step counter moves on.

        A step that a gradient scaler skipped does not count. Raises ValueError for a step without `before_step`, and
        while attached.
        """
        self._refuse_attached()
        if not self._begun:
            raise ValueError("A step has no `before_step`; call it between backward and the optimizers' steps.")
        self.finish()
        self._begun = 0

    def _refuse_attached(self) -> None:
        if self.attachment:
            raise ValueError(
                "The sparsifier is attached to an optimizer, whose hooks do all that a step needs; call "
                "`sparsifier.attachment.remove()` before anything else."
            )

    def prepare(self, optimizers: Sequence[Optimizer]) -> None:
        """What `before_step` does, for hooks."""
        # Where no step was taken for a while, candidates are re-initialised from the next step on.
        can_grow = self.reinitialises or not self.candidates
        self.watch(*optimizers)
        tell_of_loaded(self._watched, self._restored)
        self._stepped = False
        scored = self._is_scoring_step and self.scoring.gradients_are_finite() and self._heard()
        if scored:
            self._let_rest()
            if self.batches > 1:
                self.scoring.gather({score for rule in self.rules for score in rule.scores}, self.step, self._resting)
        if self.update_due:
            self._pending = True  # until it is done
            if scored and can_grow:
                self._update(optimizers)
        self.scoring.outputs.forget()
        self.mask_gradients(optimizers)

    def _heard(self) -> bool:
        """Whether outputs were listened to; a step whose forward pass came first is not scored, and the next one is."""
        heard = self.scoring.outputs.asked or not self.scoring.outputs.listeners
        if not heard and self._pending:
            raise ValueError(
                "No forward pass of the model was seen, which scores need; call the model, not its methods."
            )
        return heard

    def mask_gradients(self, optimizers: Sequence[Optimizer]) -> None:
        """Make dead gradients exactly zero, where these optimizers get them so."""
        for name in self.masked_gradients(*optimizers):
            if self.weights[name].grad is not None:
                mask.apply_mask(self.weights[name].grad, self.masks[name])

    @torch.no_grad()
    def finish(self) -> None:
        """What `after_step` does."""
        self.mask_weights()
        self.count_step()

    @torch.no_grad()
    def count_step(self) -> None:
        """Move on, where an optimizer has stepped: also with what else a rule does at the end of a step."""
        if self._stepped:
            for pool, rule in self.contests:
                if isinstance(rule, Proximal):
                    pull(pool, rule, self.weights, tuple(self._watched), self.step)
            self.step += 1

    def masked_gradients(self, *optimizers: Optimizer) -> list[str]:
        """The parameters whose gradients these optimizers get masked.

        One that mixes entries gets them dense, but for whole rows and columns: without them the rest mixes as a smaller
        matrix would.
        """
        if self.dense_moments:
            return []
        mixed = {id(parameter) for o in optimizers if mixes_entries(o) for parameter in trained_by(o)}
        parts = [(unit.is_structure, part.name) for unit in self.units.values() for part in unit.parts]
        return [name for whole, name in parts if whole or id(self.weights[name]) not in mixed]

    def before_forward(self, model: nn.Module) -> None:
        """In a step that is scored: outputs are listened to, and dead heads and neurons get new incoming weights."""
        scored = self.reinitialises and self._is_scoring_step
        self.scoring.outputs.listen(scored, self.alive)
        if scored and model.training and self._reinitialised != self._versions():
            now = self._now
            update = next((step for step in range(now, now + self.batches) if self.when(step)), now)
            at_rest(model)
            candidates.reinitialise(self.candidates, self.weights, self.masks, self.seed, update)
            self._reinitialised = self._versions()

    def _versions(self) -> tuple[int, ...]:
        """How often the weights that may wait were written to."""
        return tuple(local_shard(self.weights[part.name])._version for unit in self.candidates for part in unit.parts)

    def watch(self, *optimizers: Optimizer) -> None:
        """Learn from now on whether one of these optimizers really steps.

        Raises ValueError as `before_step` does, but for gradients.
        """
        inner = [supported(optimizer) for optimizer in optimizers]
        refuse_replaced(self.weights, self.model)
        refuse_untrained(self.weights, inner)
        # A step that began before this sparsifier was built was abandoned.
        begun = [owner for owner in owners(inner) if isinstance(owner, Sparsifier) and owner._begun > self._built]
        others = [other for other in (*begun, *attached_to(self.weights.values())) if other is not self]
        refuse_shared(self.weights, [other.weights for other in dict.fromkeys(others)])
        if not self.reinitialises:
            self.scoring.follow_outputs()
        self.reinitialises = True
        if inner == list(self._watched):
            return
        for handle in self._watched.values():
            handle.remove()
        self._watched = {optimizer: optimizer.register_step_post_hook(self._note) for optimizer in inner}
        for optimizer in inner:
            tell_of_factored(optimizer)

    def _note(self, optimizer: Optimizer, *_: Any) -> None:
        self._stepped = self._stepped or not skipped(optimizer)

    def _let_rest(self) -> None:
        """Learn which units are frozen, and say so where it is news."""
        resting = frozen(self.units.values(), self.weights)
        if news := sorted(resting - self._resting):
            warnings.warn(f"{enumerated(news)} is frozen; its topology rests until it trains.", stacklevel=4)
        self._resting = resting

    def attach(self, *optimizers: Optimizer) -> Attachment:
        """Hook into the optimizers of a step, for a loop that is not yours; `.remove()` takes the hooks off again.

        A step, as `steps` counts them, is what the optimizers do between two backward passes. Gradients are masked as
        they accumulate, so clipping sees them masked; where an update is due they stay dense.
        An optimizer's state_dict carries this one's, so a loop that resumes its optimizers resumes the topology.

        Raises ValueError as `before_step` does, and for weights that another attached sparsifier masks; later, when a
        state without a topology or with another one's is loaded.
        """
        self._refuse_attached()
        self.attachment, self._begun = Attachment(self, optimizers), 0
        return self.attachment

    def _update(self, optimizers: Sequence[Optimizer]) -> None:
        before = self.alive
        after = topology.selected(self.contests, self.scoring, before, self.step, self._resting)
        if not self.dense_moments:
            born = self.spread(((name, after[name] & ~before[name]) for name in after), self.weights)
            changed = self.spread(((name, after[name] ^ before[name]) for name in after), self.weights)
            fresh = born | {name: changed[name] for name in self.masked_gradients(*optimizers)}
            reset_optimizer_state(optimizers, {weight: ~fresh[name] for name, weight in self.weights.items()})
        self.history.record(before, after, self.step, self.fraction(self.step))
        self.hold(after)
        self.mask_weights()
        self._pending = False
        self.scoring.forget()

    def rebind(self, model: nn.Module) -> Rebound:
        other = model is not self.model
        said = super().rebind(model)
        if other:
            self.followers.clear()  # they are hooks of the model that was
            self._reinitialise_before_forward()
        self.scoring.follow_outputs()
        return said

    def _let_go(self, dropped: Collection[str]) -> None:
        self._refuse_attached()
        super()._let_go(dropped)
        self.scoring.forget()
        self.scoring.follow_outputs()

    # Going on later

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs, as tensors and plain values (loads with `weights_only`).

        It is the same whether weights are sharded or not, on however many ranks; where they are, all have to ask.
        """
        if self.attachment:
            self.attachment.end_step()
        return {
            "step": self.step,
            "pending": self._pending,
            "shapes": {name: [*unit.shape, unit.arenas, unit.members] for name, unit in self.units.items()},
            "plan": plan(self.contests),
            "alive": {name: mask.pack(alive) for name, alive in self.alive.items()},
            "history": self.history.state_dict(),
            "scores": self.scoring.state_dict(),
        }

    def refuse_other(self, state: Mapping[str, Any]) -> None:
        """ValueError for a state of another model or method, and for a damaged one."""
        refuse_other(self.state_dict(), state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken; dead weights of the model become zero.

        Raises ValueError for a state of another model or method and for a damaged one; nothing has changed then.
        """
        self.restore(state)
        self.mask_weights()

    def restore(self, state: Mapping[str, Any]) -> None:
        """As `load_state_dict`, but for the weights, which the same checkpoint brings along, sooner or later."""
        self.refuse_other(state)
        self._restored, self._begun, self._stepped, self._reinitialised = True, 0, False, ()
        self.scoring.outputs.forget()
        if self.attachment:
            self.attachment.forget_step()
        self.step, self._pending = state["step"], state["pending"]
        self.history.load_state_dict(state["history"])
        self.scoring.load_state_dict(state["scores"])
        alive = {name: mask.unpack(bits, tuple(self.alive[name].shape)) for name, bits in state["alive"].items()}
        self.hold({name: members.to(self.alive[name].device) for name, members in alive.items()})
