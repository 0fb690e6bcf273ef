"""Models that svite can't count, cut, store or translate, for their numbers do not lie in plain tensors: refused first.

They would run, and what was read off them would be wrong in silence, or fail in the middle of it.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import parametrize, prune

from svite.sparsity.names import named_modules
from svite.sparsity.ready import Opaque

_PLAIN = (Tensor, nn.Parameter, DTensor)


def refuse_unreadable(model: nn.Module, who: str) -> None:
    """ValueError names the first layer whose weights `who`, a function of svite, can't read where they are."""
    refuse_meta(model, who)
    refuse_opaque(model, who)
    _refuse_parametrized(model)


def refuse_elsewhere(model: nn.Module, who: str) -> None:
    """ValueError names the first layer that kernels of the CPU, which are made for float32, can't read."""
    refuse_unreadable(model, who)
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32 or parameter.device.type != "cpu":
            raise ValueError(f"{name} is {parameter.dtype} on {parameter.device}; {who} takes float32 on the CPU.")


def refuse_opaque(model: nn.Module, who: str) -> None:
    """ValueError names the first layer that is deployed or quantized, so that `who` can't read it."""
    refuse_deployed(model, who)
    for name, what in _unusual(model):
        raise ValueError(
            f"{name} is {what} and no plain tensor of floats; {who} takes the model that this was made of."
        )


def refuse_deployed(model: nn.Module, who: str) -> None:
    """ValueError names the first blocks that were deployed."""
    for name, module in named_modules(model).items():
        if isinstance(module, Opaque):
            raise ValueError(f"{name} is deployed; {who} takes the model that svite.deploy was given.")


def _unusual(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Names of what quantization leaves: modules without parameters, tensors of other classes, parameters of bytes."""
    for name, module in named_modules(model).items():
        if "quantized" in type(module).__module__.split("."):
            yield name, f"a {type(module).__module__}.{type(module).__name__}"
    for name, tensor in _tensors(model):
        if type(tensor) not in _PLAIN:
            yield name, f"a {type(tensor).__module__}.{type(tensor).__name__}"
        elif isinstance(tensor, nn.Parameter) and not tensor.is_floating_point():
            yield name, f"of {tensor.dtype}"


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, module in named_modules(model).items():
        for leaf, tensor in {**module._parameters, **module._buffers}.items():
            if tensor is not None:
                yield f"{name}.{leaf}".lstrip("."), tensor


def refuse_meta(model: nn.Module, who: str) -> None:
    """ValueError names the first tensor on the meta device, which has a shape and no values."""
    for name, tensor in _tensors(model):
        if tensor.is_meta:
            raise ValueError(
                f"{name} is on the meta device and has no values; give the model its weights before {who}."
            )


def _refuse_parametrized(model: nn.Module) -> None:
    """ValueError where torch computes a layer's weight anew in each pass, from what is not the weight itself."""
    if prune.is_pruned(model):
        raise ValueError("torch.nn.utils.prune holds the model's masks; make them permanent with its `remove` before.")
    for name, module in named_modules(model).items():
        if parametrize.is_parametrized(module):
            raise ValueError(
                f"{name} has a parametrized {next(iter(module.parametrizations))}; make it permanent with "
                "torch.nn.utils.parametrize.remove_parametrizations before."
            )
