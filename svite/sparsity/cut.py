"""Granularity: how weights are cut into members that are kept or pruned together.

A cut is an einops pattern from a two-dimensional weight to (arena, member, element): members compete inside an
arena, the elements of a member share one fate. Convolution weights are seen as (out, in * height * width), biases as
(out, 1).
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import NamedTuple

import einops
import torch
from jaxtyping import Float, Shaped
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
        matrix = values.reshape(len(values), -1)
        return einops.reduce(matrix, f"{weight} -> {arena} {member}", "sum", **self.sizes)

    def spread(self, values: Shaped[Tensor, "arena member"], shape: torch.Size) -> Shaped[Tensor, "out ..."]:
        """The inverse: each member's value at each of its elements (a view of `values` where the cut allows)."""
        weight, arena, member = self._sides
        return einops.repeat(values, f"{arena} {member} -> {weight}", **self.axes(shape)).view(shape)


def element() -> Cut:
    """Every weight is kept or pruned by itself; all weights of a layer compete."""
    return Cut("o i -> 1 (o i) 1")


def n_of_m(m: int) -> Cut:
    """Each group of `m` consecutive inputs of an output is an arena (2:4 sparsity: m = 4)."""
    return Cut("o (i m) -> (o i) m 1", {"m": m})


def fan_in() -> Cut:
    """Each output is an arena: all outputs keep the same number of inputs (SRigL, arXiv 2305.02299)."""
    return Cut("o i -> o i 1")


def block(height: int, width: int) -> Cut:
    """Tiles of `height` outputs by `width` inputs are kept or pruned as one."""
    return Cut("(o p) (i q) -> 1 (o i) (p q)", {"p": height, "q": width})


class Part(NamedTuple):
    """A parameter and its cut. What feeds a member is incoming; what carries its output on is outgoing."""

    name: str
    cut: Cut
    outgoing: bool = True


@dataclass(frozen=True)
class Unit:
    """One weight, or several that share a fate, with the cut of each part; `arenas` x `members` of them.

    `reader` names the module whose input is the members' outputs, one after the other and equally wide, if there is
    one; the last part is its weight.
    """

    name: str
    parts: tuple[Part, ...]
    shape: torch.Size
    arenas: int
    members: int
    reader: str = ""

    @classmethod
    def of(cls, name: str, parts: Iterable[Part], weights: Mapping[str, Tensor], reader: str = "") -> "Unit":
        """Bind the parts to a model's weights; the first part's shape stands for the unit's.

        Raises ValueError naming a weight that is tied to one of another name.
        """
        parts = tuple(parts)
        tied = [part.name for part in parts if part.name not in weights]
        if tied:
            raise ValueError(f"{tied[0]} is tied to another parameter; its members can't be pruned by themselves.")
        first = parts[0]
        arenas, members = first.cut.gather(torch.empty(weights[first.name].shape, device="meta")).shape
        return cls(name, parts, weights[first.name].shape, arenas, members, reader)

    @property
    def is_structure(self) -> bool:
        """Whether members are whole structures, with something coming in and something going out."""
        return not all(part.outgoing for part in self.parts)

    @property
    def kind(self) -> str:
        """What its members are: "heads" or "neurons", say; nothing for single weights and groups of them."""
        return self.name.rpartition(".")[2] if self.is_structure else ""

    @property
    def size(self) -> int:
        """How many members there are."""
        return self.arenas * self.members

    def gather(self, values: Mapping[str, Tensor]) -> Float[Tensor, "arena member"]:
        """Sum elementwise values over each member, over all parts."""
        return sum(part.cut.gather(values[part.name]) for part in self.parts)
