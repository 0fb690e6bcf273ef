"""A sparsifier inside a training loop that is not ours: hooks on the optimizers and on the gradients."""

import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from svite.sparsity.mask import silence
from svite.sparsity.optimizers import unwrapped

if TYPE_CHECKING:
    from svite.sparsity.sparsifier import Sparsifier


MARK = "with_topology"  # in saved parameter groups, which torch loads as they are, whoever is attached


class Attachment:
    """The hooks; while they are on, the loop calls nothing of the sparsifier itself.

    A step is one step of each optimizer, in any order; where a gradient scaler skips some of them, it ends when the
    next begins. Each optimizer's state_dict then carries the sparsifier's, for moments belong to a topology: who saves
    and loads the one keeps both. A copy made together with the sparsifier (`copy.deepcopy`) has hooks of its own.

    Raises ValueError for what `Sparsifier.before_step` refuses.
    """

    def __init__(self, sparsifier: "Sparsifier", optimizers: Sequence[Optimizer]) -> None:
        self.sparsifier, self.optimizers = sparsifier, tuple(unwrapped(optimizer) for optimizer in optimizers)
        sparsifier.watch(*self.optimizers)
        self._tell_of_loaded()
        self._to_step: set[Optimizer] = set()  # those that have not stepped yet since the step began
        self._handles = [handle for optimizer in self.optimizers for handle in self._hooked(optimizer)]
        self._handles += [
            _on_gradient(sparsifier.weights[name], _mask_gradient(sparsifier, name))
            for name in sparsifier.masked_gradients(*self.optimizers)
        ]

    def remove(self) -> None:
        """Take every hook off again."""
        self.end_step()
        for handle in self._handles:
            handle.remove()
        self.sparsifier.attachment = None

    def end_step(self) -> None:
        """Count a step of which only some optimizers' parts were taken."""
        if self._to_step:
            self._to_step.clear()
            self.sparsifier.finish()

    def __deepcopy__(self, memo: dict) -> "Attachment":
        return deepcopy(self.sparsifier, memo).attachment

    def _tell_of_loaded(self) -> None:
        """Warn of a topology in a state that was loaded when nobody was there to take it over."""
        loaded = [group.pop(MARK) for optimizer in self.optimizers for group in optimizer.param_groups if MARK in group]
        if loaded and not self._others():
            warnings.warn(
                "A topology came with the optimizer's state, which was loaded before the sparsifier was attached, and "
                "is not taken over; attach first and load then, to go on with it.",
                stacklevel=4,
            )

    def _others(self) -> list["Attachment"]:
        """Whoever else is attached to these optimizers."""
        hooks = [hook for optimizer in self.optimizers for hook in optimizer._optimizer_step_post_hooks.values()]
        owners = [getattr(hook, "__self__", None) for hook in hooks]
        return [owner for owner in owners if isinstance(owner, Attachment)]

    def _hooked(self, optimizer: Optimizer) -> list[RemovableHandle]:
        taken = {other.entry for other in self._others() if other is not self}
        names = ("sparsifier", *(f"sparsifier {number}" for number in range(2, len(taken) + 2)))
        self.entry = next(name for name in names if name not in taken)
        return [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
            optimizer.register_state_dict_post_hook(self._save),
            optimizer.register_load_state_dict_pre_hook(self._load),
            optimizer.register_load_state_dict_post_hook(_loaded),
        ]

    def _before(
        self, optimizer: Optimizer, arguments: tuple, named: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]] | None:
        closure = named.get("closure", arguments[1] if len(arguments) > 1 else None)
        if closure is None:
            return self._begin(optimizer)

        def backward_then_begin() -> Any:  # the gradients of this step do not exist before the closure ran
            loss = closure()
            self._begin(optimizer)
            return loss

        return (optimizer, backward_then_begin), {}

    def _begin(self, optimizer: Optimizer) -> None:
        if optimizer not in self._to_step:
            self.end_step()
            self.sparsifier.prepare(self.optimizers)
            self._to_step = set(self.optimizers)

    def _after(self, optimizer: Optimizer, *_: Any) -> None:
        self._to_step.discard(optimizer)
        if self._to_step:
            self.sparsifier.mask_weights()
        else:
            self.sparsifier.finish()

    def _save(self, _: Optimizer, state: dict[str, Any]) -> None:
        state[self.entry] = self.sparsifier.state_dict()
        for group in state["param_groups"]:
            group[MARK] = True

    def _load(self, _: Optimizer, state: dict[str, Any]) -> None:
        if self.entry not in state:
            raise ValueError("The optimizer's state was saved without a topology; load it first and attach then.")
        self.sparsifier.restore(state[self.entry])


def _loaded(optimizer: Optimizer) -> None:
    for group in optimizer.param_groups:
        group.pop(MARK, None)


def _on_gradient(weight: Tensor, hook: Callable[[Tensor], None]) -> RemovableHandle:
    """Hook a weight that may be frozen and train later: torch takes hooks only of those that ask for gradients."""
    trains = weight.requires_grad
    handle = weight.requires_grad_(True).register_post_accumulate_grad_hook(hook)
    weight.requires_grad_(trains)
    return handle


def _mask_gradient(sparsifier: "Sparsifier", name: str) -> Callable[[Tensor], None]:
    def hook(weight: Tensor) -> None:
        if not sparsifier.wants_dense_gradient:
            silence(weight.grad, sparsifier.masks[name])

    return hook
