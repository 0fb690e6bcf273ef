"""How a model differs from what timm builds, in edits; what no edit can say is refused by name."""

import json
import math
import reprlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from svite.io.tensors import refuse_misfit
from svite.io.vocabulary import described, put

# Values that may differ: what a cut changes, and switches that no tensor depends on.
_SETTINGS = frozenset({"num_heads", "attn_dim", "fused_attn", "grad_checkpointing", "distilled_training"})

# The mode, and where pretrained weights came from.
_IGNORED = frozenset({"training", "pretrained_cfg", "default_cfg"})

DEEPEST = 100  # values around a value: readers of JSON give up at some depth

Edit = dict[str, Any]  # {"at": place, "put": description} or {"at": place, "set": values}


def differences(fresh: nn.Module | None, model: nn.Module, at: str = "") -> Iterator[Edit]:
    """The edits that turn `fresh` into `model`, inner modules first.

    Raises ValueError naming the first module, tensor or value that differs and is in no vocabulary.
    """
    if type(model) is not type(fresh):
        wanted = "nothing" if fresh is None else f"a {type(fresh).__name__}"
        raise ValueError(f"{at or 'it'} is a {type(model).__name__}, and timm builds {wanted}")
    refuse_misfit(_own_shapes(model, at), _own_shapes(fresh, at))
    before, after = _children(fresh), _children(model)
    missing = [name for name in before if name not in after]
    if missing:
        raise ValueError(f"{_join(at, missing[0])} is missing")
    for name, child in after.items():
        place, description = _join(at, name), described(child)
        if description is None:
            yield from differences(before.get(name), child, place)
        elif description != described(before.get(name)):
            yield {"at": place, "put": description}
    changed = dict(_changed(fresh, model, at))
    if changed:
        yield {"at": at, "set": changed}


def apply(edit: Edit, model: nn.Module) -> None:
    """Change a model in place as an edit says.

    Raises ValueError for an edit that is none and for a value that no edit may set; what else goes wrong is the
    module's own error.
    """
    if edit.keys() == {"at", "put"}:
        put(model, edit["at"], edit["put"])
        return
    if edit.keys() != {"at", "set"}:
        raise ValueError("an edit should say where, and what is put or set there")
    module = model.get_submodule(edit["at"])
    for name, value in edit["set"].items():
        if name not in _SETTINGS or type(value) is not type(getattr(module, name, None)) or value < 0:
            raise ValueError(f"{_join(edit['at'], name)} can't be set to {value!r}")
        setattr(module, name, value)


def refuse_odd_heads(model: nn.Module) -> None:
    """ValueError for an attention layer whose heads are not as wide together as they say."""
    for name, module in model.named_modules():
        said = vars(module)
        if {"num_heads", "head_dim", "attn_dim"} <= said.keys() and said["num_heads"] * said["head_dim"] != said[
            "attn_dim"
        ]:
            raise ValueError(
                f"{name} has {said['num_heads']} heads of {said['head_dim']} in {said['attn_dim']} features"
            )


def _own_shapes(module: nn.Module, at: str) -> dict[str, torch.Size]:
    own = {**module._parameters, **module._buffers}
    return {_join(at, name): tensor.shape for name, tensor in own.items() if tensor is not None}


def _changed(fresh: nn.Module, model: nn.Module, at: str) -> Iterator[tuple[str, int]]:
    before, after = _values(fresh), _values(model)
    odd = next((name for name in before if name not in after and name in vars(model)), None)
    if odd:
        value = reprlib.repr(vars(model)[odd])
        raise ValueError(f"{_join(at, odd)} is {value}, and timm builds it with {before[odd]}")
    different = [name for name in before if name in after and json.dumps(before[name]) != json.dumps(after[name])]
    for name in different:
        if name not in _SETTINGS:
            raise ValueError(f"{_join(at, name)} is {after[name]}, and timm builds it with {before[name]}")
        yield name, after[name]


def _values(module: nn.Module) -> dict[str, Any]:
    public = {name: value for name, value in vars(module).items() if not name.startswith("_") and name not in _IGNORED}
    return {name: value for name, value in public.items() if is_plain(value)}


def is_plain(value: Any, depth: int = DEEPEST) -> bool:
    """Whether JSON can hold a value (a tuple comes back as a list), and it is not nested too deep."""
    if isinstance(value, Mapping):
        return depth > 0 and all(isinstance(key, str) and is_plain(inner, depth - 1) for key, inner in value.items())
    if isinstance(value, list | tuple):
        return depth > 0 and all(is_plain(inner, depth - 1) for inner in value)
    return value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))


def _children(module: nn.Module) -> dict[str, nn.Module]:
    return {name: child for name, child in module._modules.items() if child is not None}


def _join(at: str, name: str) -> str:
    return f"{at}.{name}" if at else name
