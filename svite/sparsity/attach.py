"""A sparsifier inside a training loop that is not ours: hooks on the optimizers and on the gradients."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any
from weakref import ref

from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from svite.sparsity.mask import apply_mask
from svite.sparsity.optimizers import innermost

if TYPE_CHECKING:
    from svite.sparsity.sparsifier import Sparsifier


MARK = "with_topology"  # in saved parameter groups, which torch loads as they are, whoever is attached


class Attachment:
    """The hooks; while they are on, the loop calls nothing of the sparsifier itself.

    A step is what the optimizers do between two backward passes, in any order, whether or not a gradient scaler skips
    some of them. Each optimizer's state_dict carries the sparsifier's, for moments belong to a topology: who saves and
    loads the one keeps both. A copy made together with the sparsifier (`copy.deepcopy`) has hooks of its own.

    Raises ValueError for what `Sparsifier.before_step` refuses.
    """

    def __init__(self, sparsifier: "Sparsifier", optimizers: Sequence[Optimizer]) -> None:
        self.sparsifier = sparsifier
        sparsifier.watch(*optimizers)
        self.optimizers = tuple(dict.fromkeys(innermost(optimizer) for optimizer in optimizers))
        self.is_open = False  # whether a step has begun that is not counted yet
        self._fresh = False  # whether there are gradients that no step has taken yet
        self._members: set[Optimizer] = set()  # those that took part in the last step so far
        self._coming: Mapping[str, Any] | None = None  # a state that is being loaded
        self._handles = [handle for optimizer in self.optimizers for handle in self._hooked(optimizer)]
        masked = frozenset(sparsifier.masked_gradients(*self.optimizers))
        self._handles += [
            _on_gradient(weight, GradientHook(self, name, name in masked))
            for name, weight in sparsifier.weights.items()
        ]

    def remove(self) -> None:
        """Take every hook off again; no candidates are re-initialised until the sparsifier is used again."""
        self.end_step()
        for handle in self._handles:
            handle.remove()
        self.sparsifier.attachment, self.sparsifier.reinitialises = None, False
        self.sparsifier.scoring.outputs.remove()

    def end_step(self) -> None:
        """Count a step of which only some optimizers' parts were taken; its weights are masked."""
        if self.is_open:
            self.is_open = False
            self.sparsifier.count_step()

    def forget_step(self) -> None:
        """Where another state is loaded, no step goes on."""
        self.is_open, self._fresh, self._members = False, False, set()

    def go_on_as(self, other: "Attachment", memo: dict) -> None:
        """Take over where in a step another one is, of which this is the copy."""
        self.is_open, self._fresh = other.is_open, other._fresh
        self._members = {deepcopy(optimizer, memo) for optimizer in other._members}

    def __deepcopy__(self, memo: dict) -> "Attachment":
        return deepcopy(self.sparsifier, memo).attachment

    def _hooked(self, optimizer: Optimizer) -> list[RemovableHandle]:
        taken = {other.entry for other in owners([optimizer]) if isinstance(other, Attachment) and other is not self}
        names = ("sparsifier", *(f"sparsifier {number}" for number in range(2, len(taken) + 2)))
        self.entry = next(name for name in names if name not in taken)
        return [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
            optimizer.register_state_dict_post_hook(self._save),
            optimizer.register_load_state_dict_pre_hook(self._check),
            optimizer.register_load_state_dict_post_hook(self._load),
        ]

    def _before(
        self, optimizer: Optimizer, arguments: tuple, named: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]] | None:
        closure = named.get("closure", arguments[1] if len(arguments) > 1 else None)
        if closure is None:
            return self._begin(optimizer)

        def backward_then_begin() -> Any:  # the gradients of this step do not exist before the closure ran
            before = self._fresh
            loss = closure()
            self._fresh = before
            self._begin(optimizer)
            return loss

        return (optimizer, backward_then_begin), {}

    def _begin(self, optimizer: Optimizer) -> None:
        if self._fresh or optimizer in self._members or not self._members:
            self.end_step()
            self.sparsifier.prepare(self.optimizers)
            self.is_open, self._fresh, self._members = True, False, set()
        else:
            self.sparsifier.mask_gradients(self.optimizers)
        self._members.add(optimizer)

    def _after(self, *_: Any) -> None:
        self.sparsifier.mask_weights()
        if self._members.issuperset(self.optimizers):
            self.end_step()

    def accumulated(self, name: str, masked: bool) -> None:
        """A weight has a gradient: masked at once, so that clipping sees it masked, but where it decides on births."""
        self._fresh = True
        if masked and not self.sparsifier.wants_dense_gradient:
            apply_mask(self.sparsifier.weights[name].grad, self.sparsifier.masks[name])

    def _save(self, _: Optimizer, state: dict[str, Any]) -> None:
        state[self.entry] = self.sparsifier.state_dict()
        for group in state["param_groups"]:
            group[MARK] = True

    def _check(self, _: Optimizer, state: dict[str, Any]) -> None:
        """Before torch changes anything, and any other sparsifier."""
        self._coming = None
        if self.entry not in state:
            raise ValueError("The optimizer's state was saved without a topology; load it first and attach then.")
        self.sparsifier.refuse_other(state[self.entry])
        self._coming = state[self.entry]

    def _load(self, optimizer: Optimizer) -> None:
        for group in optimizer.param_groups:
            group.pop(MARK, None)
        if self._coming is not None:
            self.sparsifier.restore(self._coming)
        self._coming = None


class GradientHook:
    """What an attachment hangs on a weight; it tells who masks it, as long as an optimizer's hooks keep that alive."""

    def __init__(self, attachment: Attachment, name: str, masked: bool) -> None:
        self.attachment, self.name, self.masked = ref(attachment), name, masked

    def __call__(self, _: Tensor) -> None:
        if attachment := self.attachment():
            attachment.accumulated(self.name, self.masked)


def _on_gradient(weight: Tensor, hook: Callable[[Tensor], None]) -> RemovableHandle:
    """Hook a weight that may be frozen and train later: torch takes hooks only of those that ask for gradients."""
    trains = weight.requires_grad
    handle = weight.requires_grad_(True).register_post_accumulate_grad_hook(hook)
    weight.requires_grad_(trains)
    return handle


def owners(optimizers: Iterable[Optimizer]) -> list[Any]:
    """Whose methods are hooks on the steps of these optimizers."""
    hooks = [hook for optimizer in optimizers for hook in optimizer._optimizer_step_post_hooks.values()]
    return [hook.__self__ for hook in hooks if hasattr(hook, "__self__")]


def attached_to(weights: Iterable[Tensor]) -> list["Sparsifier"]:
    """Who masks the gradients of these weights by hooks, by whatever optimizer."""
    hooks = [hook for weight in weights for hook in (weight._post_accumulate_grad_hooks or {}).values()]
    attachments = [hook.attachment() for hook in hooks if isinstance(hook, GradientHook)]
    return [attachment.sparsifier for attachment in attachments if attachment]


def tell_of_loaded(optimizers: Iterable[Optimizer], taken_over: bool) -> None:
    """Warn of a topology in a state that was loaded when nobody was there to take it over."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    if any([group.pop(MARK, False) for group in groups]) and not taken_over:
        warnings.warn(
            "A topology came with the optimizer's state, which was loaded before the sparsifier was attached, and is "
            "not taken over; attach first and load then, to go on with it.",
            stacklevel=5,
        )
