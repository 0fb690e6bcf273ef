"""What a cut starts from: a copy of the model, and which of its weights live."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from svite.sparsity.names import named_parameters, unwrapped

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")

Alive = dict[nn.Parameter, Bool[Tensor, "..."]]


@runtime_checkable
class Masked(Protocol):
    """What is needed of a `Sparsifier`: which weights live, by plain parameter name."""

    masks: Mapping[str, Bool[Tensor, "..."]]


def copied(model: nn.Module) -> nn.Module:
    """A copy outside of DDP and torch.compile and without hooks, but for those that call a block's token selector.

    A hook may hold a whole training run, which the copy must neither duplicate nor call.
    """
    model = unwrapped(model)
    without = {
        id(hooks): _selectors(module) if name == "_forward_pre_hooks" else type(hooks)()
        for module in model.modules()
        for name, hooks in vars(module).items()
        if name in _HOOKS
    }
    return deepcopy(model, without)


def _selectors(module: nn.Module) -> dict[int, Callable]:
    """The pre-hook that calls the module's token selector, if it has one."""
    hooks = module._forward_pre_hooks
    kept = {module.selector.hook.id} if hasattr(module, "selector") else set()
    return type(hooks)((number, hook) for number, hook in hooks.items() if number in kept)


def living(model: nn.Module, sparsifier: Masked | None) -> Alive:
    """Which weights live: those of the masks, all where there is none; without a sparsifier, those that are not zero.

    Raises ValueError naming a mask that does not fit the model, or whose dead weights are not zero in it.
    """
    if sparsifier is None:
        return {weight: weight.detach() != 0 for weight in model.parameters()}
    parameters = named_parameters(model)
    alive = {weight: torch.ones_like(weight, dtype=torch.bool) for weight in parameters.values()}
    return alive | {parameters[name]: mask for name, mask in masks_of(sparsifier, parameters).items()}


def masks_of(sparsifier: Masked, tensors: Mapping[str, Tensor]) -> dict[str, Bool[Tensor, "..."]]:
    """The masks, each on the device of the tensor that it masks.

    Raises ValueError naming a mask that fits none of the tensors, or whose dead weights are not zero there.
    """
    masks = {}
    for name, mask in sparsifier.masks.items():
        if name not in tensors or tensors[name].shape != mask.shape:
            raise ValueError(
                f"The model has no {name} of shape {tuple(mask.shape)}, which the sparsifier masks; where it was "
                "replaced, call `sparsifier.rebind(model)` first."
            )
        masks[name] = mask.to(tensors[name].device)
        if tensors[name][~masks[name]].any():
            raise ValueError(f"Dead weights of {name} are not zero; call `sparsifier.apply(model)` first.")
    return masks
