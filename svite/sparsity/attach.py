"""A sparsifier inside a training loop that is not ours: hooks on the optimizer and on the gradients."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.optim import Optimizer

from svite.sparsity.mask import silence
from svite.sparsity.optimizers import unwrapped

if TYPE_CHECKING:
    from svite.sparsity.sparsifier import Sparsifier


class Attachment:
    """The hooks; while they are on, the loop calls nothing of the sparsifier itself.

    The optimizer's state_dict then carries the sparsifier's, for moments belong to a topology: who saves and loads the
    one keeps both.
    """

    def __init__(self, sparsifier: "Sparsifier", optimizer: Optimizer) -> None:
        sparsifier.watch(optimizer)
        inner = unwrapped(optimizer)
        self._handles = [
            inner.register_step_pre_hook(_prepare(sparsifier)),
            inner.register_step_post_hook(lambda *_: sparsifier.after_step()),
            inner.register_state_dict_post_hook(lambda _, state: state.update(sparsifier=sparsifier.state_dict())),
            inner.register_load_state_dict_pre_hook(_resume(sparsifier)),
        ]
        self._handles += [
            sparsifier.weights[name].register_post_accumulate_grad_hook(_mask_gradient(sparsifier, name))
            for name in sparsifier.masked_gradients(inner)
        ]

    def remove(self) -> None:
        """Take every hook off again."""
        for handle in self._handles:
            handle.remove()


def _prepare(sparsifier: "Sparsifier") -> Callable[..., Any]:
    def hook(optimizer: Optimizer, arguments: tuple, named: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        closure = named.get("closure", arguments[1] if len(arguments) > 1 else None)
        if closure is None:
            return sparsifier.before_step(optimizer)

        def backward_then_prepare() -> Any:  # the gradients of this step do not exist before the closure ran
            loss = closure()
            sparsifier.before_step(optimizer)
            return loss

        return (optimizer, backward_then_prepare), {}

    return hook


def _mask_gradient(sparsifier: "Sparsifier", name: str) -> Callable[[Tensor], None]:
    def hook(weight: Tensor) -> None:
        if not sparsifier.wants_dense_gradient:
            silence(weight.grad, sparsifier.masks[name])

    return hook


def _resume(sparsifier: "Sparsifier") -> Callable[[Optimizer, dict[str, Any]], None]:
    def hook(_: Optimizer, state: dict[str, Any]) -> None:
        if "sparsifier" not in state:
            raise ValueError("The optimizer's state was saved without a topology; load it first and attach then.")
        sparsifier.restore(state["sparsifier"])

    return hook
