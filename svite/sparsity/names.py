"""Modules and parameters by the names that they have in the model itself, whatever wraps it or parts of it."""

from collections.abc import Collection, Iterable, Iterator
from itertools import accumulate
from typing import TypeVar

from torch import nn

from svite.sparsity.sharded import at_rest, refuse_flattened

_INSIDE = {  # the class of a wrapper, and what it calls the module inside
    "AveragedModel": "module",
    "CheckpointWrapper": "_checkpoint_wrapped_module",
    "DataParallel": "module",
    "DeepSpeedEngine": "module",
    "DistributedDataParallel": "module",
    "FullyShardedDataParallel": "_fsdp_wrapped_module",
    "ModelEmaV2": "module",
    "ModelEmaV3": "module",
    "OptimizedModule": "_orig_mod",
    "_FabricModule": "_forward_module",
}

Found = TypeVar("Found")


def _inside(module: nn.Module) -> str | None:
    """What a wrapper calls the module inside; None for any other module, whatever its children are called."""
    children = (_INSIDE.get(cls.__name__) for cls in type(module).__mro__)
    return next((child for child in children if child in module._modules), None)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside of DDP, torch.compile, an average of weights and other wrappers."""
    while child := _inside(model):
        model = model._modules[child]
    return model


def _walk(model: nn.Module) -> Iterator[tuple[str, str, nn.Module]]:
    """Each module after its name in torch and its name in the model itself; a wrapper has that of what is inside."""
    added: set[str] = set()
    for name, module in model.named_modules():
        if child := _inside(module):
            added.add(f"{name}.{child}" if name else child)
        yield name, _without(added, name) if added else name, module


def _without(added: Collection[str], name: str) -> str:
    """A name, but for the steps of its path that wrappers added."""
    steps = accumulate(name.split("."), "{}.{}".format)
    return ".".join(step.rpartition(".")[2] for step in steps if step not in added)


def named_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Every module but wrappers, by its name in the model itself.

    Raises ValueError where two would have one name, and for a model whose weights FSDP1 or DeepSpeed has flattened.
    """
    refuse_flattened(model)
    return _unique((name, own, module) for name, own, module in _walk(model) if not _inside(module))


def named_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Every parameter by its name in the model itself, one that is tied by its first; what FSDP2 has sharded as shards.

    Raises ValueError where two would have one name, and for a model whose weights FSDP1 or DeepSpeed has flattened.
    """
    refuse_flattened(model)
    at_rest(model)
    return _unique(_parameters(model))


def _parameters(model: nn.Module) -> Iterator[tuple[str, str, nn.Parameter]]:
    seen: set[int] = set()
    for name, own, module in _walk(model):
        for leaf, parameter in module._parameters.items():
            if parameter is not None and id(parameter) not in seen:
                seen.add(id(parameter))
                yield f"{name}.{leaf}".lstrip("."), f"{own}.{leaf}".lstrip("."), parameter


def _unique(named: Iterable[tuple[str, str, Found]]) -> dict[str, Found]:
    first: dict[str, str] = {}
    found = {}
    for name, own, value in named:
        if own in found:
            raise ValueError(f"{first[own]} and {name} would both be called {own} here; give one another name.")
        first[own], found[own] = name, value
    return found
