"""Whole attention and MLP branches, as members that are kept or pruned by their LayerScale."""

from collections.abc import Sequence

import torch
from timm.models.vision_transformer import Block, LayerScale
from torch import nn

from svite.sparsity.cut import Cut, Part, Unit
from svite.sparsity.layers import matching
from svite.sparsity.names import named_modules
from svite.sparsity.sharded import refuse_sharded

_SCALES = {"ls1": "attn", "ls2": "mlp"}


def branches(model: nn.Module, layers: Sequence[str] | None = None) -> list[Unit]:
    """One unit a branch, whose only member is all of its LayerScale, present or still to be added by `add_scales`.

    Args:
        model: a timm Vision Transformer.
        layers: name patterns of branches, "blocks.0.mlp" say (default: all).

    Raises ValueError for a model without timm's `Block`, and for a pattern that matches none of its branches.
    """
    whole = Cut("channel one -> 1 1 (channel one)")
    units = []
    for name, (path, block, scale) in _places(model, layers).items():
        gamma = f"{path}.{scale}.gamma"
        sizes = {gamma: torch.empty(block.norm1.weight.numel(), device="meta")}
        units.append(Unit.of(name, [Part(gamma, whole)], sizes))
    return units


def add_scales(model: nn.Module, layers: Sequence[str] | None = None) -> None:
    """Give every branch without LayerScale timm's, at one; arguments and errors are those of `branches`.

    Raises ValueError also for a model that would get one and is sharded.
    """
    for _, block, scale in _places(model, layers).values():
        old = getattr(block, scale)
        if isinstance(old, nn.Identity):
            refuse_sharded(model, "LayerScale's")
            like = next(block.parameters())
            new = LayerScale(block.norm1.weight.numel(), init_values=1.0).to(like)
            setattr(block, scale, new.train(old.training))


def _places(model: nn.Module, layers: Sequence[str] | None) -> dict[str, tuple[str, Block, str]]:
    blocks = {name: module for name, module in named_modules(model).items() if isinstance(module, Block)}
    if not blocks:
        raise ValueError(f"{type(model).__name__} has no timm Block, so there are no branches to prune.")
    found = {f"{n}.{branch}": (n, block, scale) for n, block in blocks.items() for scale, branch in _SCALES.items()}
    return {name: found[name] for name in (found if layers is None else matching(found, layers))}
