"""When a loss is no number: which layer was first."""

from typing import Any

import torch
from torch import Tensor, nn


class Diverged(RuntimeError):
    """Training came to a loss that is no number."""


def _finite(values: Any) -> bool:
    if isinstance(values, Tensor):
        return not values.is_floating_point() or bool(values.isfinite().all())
    return all(map(_finite, values)) if isinstance(values, list | tuple) else True


@torch.no_grad()
def first_layer(model: nn.Module, images: Tensor) -> str:
    """The first layer, in the order of the forward pass, that makes something not finite of finite inputs."""
    found: list[str] = []

    def look(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple, output: Any) -> None:
            if not found and _finite(inputs) and not _finite(output):
                found.append(name)

        return hook

    leaves = [(name, module) for name, module in model.named_modules() if not any(module.children())]
    handles = [module.register_forward_hook(look(name)) for name, module in leaves]
    try:
        model(images)
    finally:
        for handle in handles:
            handle.remove()
    if not _finite(images):
        return "the images"
    return found[0] if found else "the loss itself"
