"""Granularity: how weights are cut into members that live or die together.

A cut is an einops pattern from a two-dimensional weight to (arena, member, element): members compete inside an
arena, the elements of a member share one fate. Convolution weights are seen as (out, in * height * width).
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod

import einops
import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class Cut:
    """An einops pattern, `"o i -> 1 (o i) 1"` say, with the sizes of the axes that it names but shapes don't tell."""

    pattern: str
    sizes: Mapping[str, int] = field(default_factory=dict)

    @property
    def _sides(self) -> tuple[str, str, str]:
        weight, right = self.pattern.split("->")
        arena, member, _ = re.findall(r"\([^)]*\)|\S+", right)
        return weight.strip(), arena, member

    def fits(self, shape: torch.Size) -> bool:
        """Whether a weight of this shape divides into whole members."""
        try:
            self.axes(shape)
        except ValueError:
            return False
        return True

    def axes(self, shape: torch.Size) -> dict[str, int]:
        """The size of every named axis; ValueError where `shape` does not divide."""
        sizes = dict(self.sizes)
        dimensions = re.findall(r"\(([^)]*)\)|(\S+)", self._sides[0])
        for (group, single), size in zip(dimensions, (shape[0], prod(shape[1:])), strict=True):
            names = (group or single).split()
            known = prod(sizes.get(name, 1) for name in names)
            if size % known:
                raise ValueError(f"A dimension of {size} does not divide by {known}, as '{self.pattern}' asks.")
            sizes |= {name: size // known for name in names if name not in sizes}
        return sizes

    def gather(self, values: Float[Tensor, "out ..."]) -> Float[Tensor, "arena member"]:
        """Sum `values` over the elements of each member."""
        weight, arena, member = self._sides
        return einops.reduce(values.flatten(1), f"{weight} -> {arena} {member}", "sum", **self.sizes)

    def spread(self, alive: Bool[Tensor, "arena member"], shape: torch.Size) -> Bool[Tensor, "out ..."]:
        """The inverse: each member's fate at each of its elements (a view of `alive` where the cut allows)."""
        weight, arena, member = self._sides
        return einops.repeat(alive, f"{arena} {member} -> {weight}", **self.axes(shape)).view(shape)


def element() -> Cut:
    """Every weight lives or dies by itself; all weights of a layer compete."""
    return Cut("o i -> 1 (o i) 1")


def n_of_m(m: int) -> Cut:
    """Each group of `m` consecutive inputs of an output is an arena (2:4 sparsity: m = 4)."""
    return Cut("o (i m) -> (o i) m 1", {"m": m})


def fan_in() -> Cut:
    """Each output is an arena: all outputs keep the same number of inputs (SRigL, arXiv 2305.02299)."""
    return Cut("o i -> o i 1")


def block(height: int, width: int) -> Cut:
    """Tiles of `height` outputs by `width` inputs live or die as one."""
    return Cut("(o p) (i q) -> 1 (o i) (p q)", {"p": height, "q": width})


@dataclass(frozen=True)
class Unit:
    """One weight, or several that share a fate, with the cut of each part; `arenas` x `members` of them."""

    name: str
    parts: tuple[tuple[str, Cut], ...]
    shape: torch.Size
    arenas: int
    members: int

    @classmethod
    def of(cls, name: str, parts: Iterable[tuple[str, Cut]], weights: Mapping[str, Tensor]) -> "Unit":
        """Bind the parts to a model's weights; the first part's shape stands for the unit's."""
        parts = tuple(parts)
        first, cut = parts[0]
        arenas, members = cut.gather(torch.empty(weights[first].shape, device="meta")).shape
        return cls(name, parts, weights[first].shape, arenas, members)

    @property
    def size(self) -> int:
        """How many members there are."""
        return self.arenas * self.members

    def gather(self, values: Mapping[str, Tensor]) -> Float[Tensor, "arena member"]:
        """Sum elementwise values over each member, over all parts."""
        return sum(cut.gather(values[name]) for name, cut in self.parts)
