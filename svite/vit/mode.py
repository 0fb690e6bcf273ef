"""How a model runs: for evaluation, and where hooks are to see all of it."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; outside, after an error too, every module in the mode that it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def device_of(model: nn.Module) -> torch.device:
    """Where the images of a model go: to its first parameter."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def uncompiled() -> AbstractContextManager[None]:
    """Inside, what torch has compiled runs as it was written, so that hooks on its parts are called."""
    return torch.compiler.set_stance("force_eager")
