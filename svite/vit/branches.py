"""Whole attention and MLP branches, as members that live or die by their LayerScale."""

from collections.abc import Sequence

from timm.models.vision_transformer import Block, LayerScale
from torch import nn

from svite.sparsity.cut import Cut, Part, Unit
from svite.sparsity.layers import matching, named_parameters, plain_name

_SCALES = {"ls1": "attn", "ls2": "mlp"}


def branches(model: nn.Module, layers: Sequence[str] | None = None) -> list[Unit]:
    """One unit a branch, whose only member is all of its LayerScale; a block without one gets timm's, at one.

    Args:
        model: a timm Vision Transformer; changed in place where LayerScale is missing.
        layers: name patterns of branches, "blocks.0.mlp" say (default: all).

    Raises ValueError for a model without timm's `Block`, and for a pattern that matches none of its branches.
    """
    blocks = {plain_name(name): module for name, module in model.named_modules() if isinstance(module, Block)}
    if not blocks:
        raise ValueError(f"{type(model).__name__} has no timm Block, so there are no branches to prune.")
    found = {f"{name}.{branch}": (name, scale) for name in blocks for scale, branch in _SCALES.items()}
    chosen = {name: found[name] for name in (found if layers is None else matching(found, layers))}
    for block, scale in chosen.values():
        _give_scale(blocks[block], scale)
    weights = named_parameters(model)
    whole = Cut("channel one -> 1 1 (channel one)")
    return [Unit.of(name, [Part(f"{block}.{scale}.gamma", whole)], weights) for name, (block, scale) in chosen.items()]


def _give_scale(block: Block, scale: str) -> None:
    if isinstance(getattr(block, scale), nn.Identity):
        like = next(block.parameters())
        setattr(block, scale, LayerScale(block.norm1.weight.numel(), init_values=1.0).to(like))
