"""Sparse tensors in few bytes: one bit an element, and the elements that are there."""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Bool
from torch import Tensor

from svite.sparsity import mask

ALIVE = "alive:"  # bits of a mask: what they count is alive, zero or not
NONZERO = "nonzero:"  # bits that only save space, and say nothing of who is alive

Shapes = dict[str, list[int]]


def packed(tensors: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Shapes]:
    """All tensors, and the true shapes of those that were packed: where there is a mask, or where it saves bytes.

    Of a packed tensor only the living, or else the non-zero, elements are left, in row-major order; beside it stand its
    bits, as `alive:NAME` or `nonzero:NAME`. A zero that is left out comes back as +0.0.
    """
    small, shapes = {}, {}
    for name, tensor in tensors.items():
        chosen, prefix = (masks[name], ALIVE) if name in masks else (tensor != 0, NONZERO)
        if name in masks or _pays(chosen, tensor.element_size()):
            small[prefix + name], shapes[name] = mask.pack(chosen), list(tensor.shape)
            tensor = tensor[chosen]
        small[name] = tensor
    return small, shapes


def _pays(nonzero: Bool[Tensor, "..."], size: int) -> bool:
    return -(-nonzero.numel() // 8) < size * int((~nonzero).sum())


def true_shapes(small: Mapping[str, Tensor], shapes: Mapping[str, list[int]]) -> dict[str, torch.Size]:
    """The shape that each tensor will have, before any takes its room.

    Raises ValueError for a shape that is none, or that has no bits.
    """
    for name, shape in shapes.items():
        if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
            raise ValueError(f"the shape of {name} is {shape!r}, which is none")
        beside = [small[prefix + name] for prefix in (NONZERO, ALIVE) if prefix + name in small]
        if len(beside) != 1 or name not in small:
            raise ValueError(f"{name} has a shape of its own, and not its elements and their bits beside it")
        if beside[0].dtype != torch.uint8 or beside[0].shape != (-(-math.prod(shape) // 8),):
            raise ValueError(f"the bits of {name} are not one for each element of shape {tuple(shape)}")
    bits = {prefix + name for prefix in (NONZERO, ALIVE) for name in shapes}
    return {name: torch.Size(shapes.get(name, tensor.shape)) for name, tensor in small.items() if name not in bits}


def unpacked(
    small: Mapping[str, Tensor], shapes: Mapping[str, list[int]]
) -> tuple[dict[str, Tensor], dict[str, Bool[Tensor, "..."]]]:
    """The inverse: the tensors, and the masks of those that had one.

    Raises ValueError as `true_shapes` does, and naming a tensor whose bits do not count its elements.
    """
    true_shapes(small, shapes)
    bits = {name: prefix + name for prefix in (NONZERO, ALIVE) for name in shapes if prefix + name in small}
    tensors = {name: tensor for name, tensor in small.items() if name not in bits.values()}
    masks = {}
    for name, shape in shapes.items():
        chosen = mask.unpack(small[bits[name]], tuple(shape))
        tensors[name] = _spread(name, small[name], chosen)
        if bits[name].startswith(ALIVE):
            masks[name] = chosen
    return tensors, masks


def _spread(name: str, values: Tensor, chosen: Bool[Tensor, "..."]) -> Tensor:
    if values.shape != (int(chosen.sum()),):
        raise ValueError(f"{name} holds {values.numel()} elements, not the {int(chosen.sum())} that its bits count")
    full = values.new_zeros(chosen.shape)
    # With a mask torch would put a single value as a number, and a NaN loses bits.
    places = chosen.view(-1).nonzero(as_tuple=True)
    full.view(-1)[places] = values
    return full
