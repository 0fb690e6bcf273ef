"""When a loss is no number: which layer was first."""

from typing import Any

import torch
from torch import Tensor, nn

from svite.sparsity.sharded import local_shard

MODEL, LOSS = "the model, outside its layers", "the loss itself"


class Diverged(RuntimeError):
    """Training came to a loss, or to weights, that are no numbers."""


def _finite(values: Any) -> bool:
    if isinstance(values, Tensor):
        return not values.is_floating_point() or bool(values.isfinite().all())
    return all(map(_finite, values)) if isinstance(values, list | tuple) else True


@torch.no_grad()
def first_layer(model: nn.Module, images: Tensor) -> str:
    """The first layer, and the innermost, that makes something not finite of finite inputs in the forward pass.

    Every process of a sharded model has to ask.
    """
    found: list[str] = []

    def look(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple, output: Any) -> None:
            if not found and _finite(inputs) and not _finite(output):
                found.append(name)

        return hook

    handles = [module.register_forward_hook(look(name or MODEL)) for name, module in model.named_modules()]
    try:
        model(images)
    finally:
        for handle in handles:
            handle.remove()
    if not _finite(images):
        return "the images"
    return found[0] if found else LOSS


def first_parameter(model: nn.Module) -> str | None:
    """The first parameter, or this process's part of it, with something in it that is no number."""
    return next((name for name, parameter in model.named_parameters() if not _finite(local_shard(parameter))), None)
