"""All tensors of a model by name, taken out and put back."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def all_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, those too that a state dict leaves out; a tied one under each of its names."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def shapes(model: nn.Module) -> dict[str, torch.Size]:
    """The shape of each."""
    return {name: tensor.shape for name, tensor in all_tensors(model).items()}


def refuse_misfit(found: Mapping[str, torch.Size], built: Mapping[str, torch.Size]) -> None:
    """ValueError names the first tensor that is missing, of another shape than built, or one too many."""
    for name in {**built, **found}:
        if found.get(name) != built.get(name):
            is_found = f"is of shape {tuple(found[name])}" if name in found else "is missing"
            is_built = f"one of shape {tuple(built[name])}" if name in built else "none"
            raise ValueError(f"{name} {is_found}, and timm builds {is_built}")


def tied(model: nn.Module) -> dict[str, str]:
    """The names of tensors that have another name, with the first of them.

    >>> layer = nn.Linear(2, 2, bias=False)
    >>> tied(nn.Sequential(layer, layer))
    {'1.weight': '0.weight'}
    """
    first: dict[int, str] = {}
    names = {name: first.setdefault(id(tensor), name) for name, tensor in all_tensors(model).items()}
    return {name: other for name, other in names.items() if name != other}


def load_tensors(model: nn.Module, tensors: Mapping[str, Tensor], ties: Mapping[str, str]) -> None:
    """Give a model all of its tensors as they are, and make each of a tie the other again.

    Raises ValueError naming the first tensor that does not fit.
    """
    untied = {name: shape for name, shape in shapes(model).items() if name not in ties}
    refuse_misfit({name: tensor.shape for name, tensor in tensors.items()}, untied)
    _refuse_ties(model, ties)
    for name, old in all_tensors(model).items():
        if name not in ties:
            same = tensors[name].dtype == old.dtype
            if not same and not (tensors[name].is_floating_point() and old.is_floating_point()):
                raise ValueError(f"{name} is {tensors[name].dtype}, and timm builds {old.dtype}")
            parameter = isinstance(old, nn.Parameter)
            _set(model, name, nn.Parameter(tensors[name], old.requires_grad) if parameter else tensors[name])
    filled = all_tensors(model)
    for name in filled.keys() & ties.keys():
        _set(model, name, filled[ties[name]])


def _refuse_ties(model: nn.Module, ties: Mapping[str, str]) -> None:
    """ValueError for a tie of what is not alike, or to what is tied itself and so has no values."""
    built = all_tensors(model)
    for name, other in ties.items():
        known = name in built and other in built and other not in ties
        if not known or built[name].shape != built[other].shape or type(built[name]) is not type(built[other]):
            raise ValueError(f"{name} can't be the same tensor as {other}")


def _set(model: nn.Module, name: str, tensor: Tensor) -> None:
    place, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(place), leaf, tensor)
