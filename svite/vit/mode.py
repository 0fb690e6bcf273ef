"""How a model runs: for evaluation, and where hooks are to see all of it."""

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import nn


@contextmanager
def enough_memory() -> Iterator[None]:
    """Inside, torch's word for too little memory, which on a CPU is any RuntimeError, becomes a MemoryError."""
    try:
        yield
    except RuntimeError as error:
        said = str(error)
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in said:
            raise
        asked = re.search(r"tried to allocate [\d.]+ \w+", said, re.IGNORECASE)
        told = f" (torch {asked[0].lower()})" if asked else ""
        raise MemoryError(f"There is too little memory for so many images at a time{told}; pass fewer.") from error


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; outside, after an error too, every module in the mode that it was in.

    Raises MemoryError where a pass needs more than there is.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with enough_memory():
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
