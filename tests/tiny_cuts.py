"""Tiny models with dead heads, neurons and inputs, for the tests of models that get smaller."""

from copy import deepcopy
from types import SimpleNamespace

import timm
import torch
from timm.models.vision_transformer import ResPostBlock
from tiny import VIT, batch, logits
from torch import Tensor, nn

from svite.sparsity.names import named_parameters
from svite.vit.gather import gather_inputs
from svite.vit.parts import Zero
from svite.vit.shrink import shrink

HEADS, NEURONS, DEPTH = 4, 64, 2
VARIANTS = {
    "plain": {},
    "distilled": {"name": "deit_tiny_distilled_patch16_224"},
    "registers": {"reg_tokens": 3},
    "layer scale": {"init_values": 0.1},
    "qk norm": {"qk_norm": True},
    "average pool": {"class_token": False, "global_pool": "avg"},
    "attention pool": {"class_token": False, "global_pool": "map"},
    "no qkv bias": {"qkv_bias": False},
    "no bias after": {"proj_bias": False},
    "no bias": {"qkv_bias": False, "proj_bias": False},
    "another activation": {"act_layer": "sigmoid"},
    "post norm": {"block_fn": ResPostBlock},
}


def model_of(name: str = "vit_tiny_patch16_224", **arguments: object) -> nn.Module:
    """A tiny model in eval mode, every parameter of it, the biases too, far from zero."""
    torch.manual_seed(0)
    model = timm.create_model(name, **{**VIT, "depth": DEPTH, "num_heads": HEADS, **arguments}).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model


def images_of(dtype: torch.dtype = torch.float64) -> Tensor:
    return batch(0, 4)[0].to(dtype)


def difference(model: nn.Module, small: nn.Module) -> float:
    """Between eval outputs on the same images, relative to the largest."""
    images = images_of(next(model.parameters()).dtype)
    with torch.no_grad():
        expected, found = logits(deepcopy(model).eval(), images), logits(deepcopy(small).eval(), images)
    return float((expected - found).abs().max() / expected.abs().max().clamp(min=1))


def sizes(block: nn.Module) -> tuple[int, int]:
    heads = 0 if isinstance(block.attn, Zero) else block.attn.num_heads
    return heads, 0 if isinstance(block.mlp, Zero) else block.mlp.fc1.out_features


# Masks


def all_alive(model: nn.Module) -> dict[str, Tensor]:
    return {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in named_parameters(model).items()}


def masked(model: nn.Module, masks: dict[str, Tensor]) -> SimpleNamespace:
    """Zero what is dead in a model; what `shrink` needs of a sparsifier."""
    with torch.no_grad():
        for name, weight in named_parameters(model).items():
            if name in masks:
                weight.mul_(masks[name])
    return SimpleNamespace(masks=masks)


def values(mask: Tensor) -> Tensor:
    """The rows of qkv that make the values, as one slice a head."""
    return mask[-len(mask) // 3 :].view(HEADS, -1, *mask.shape[1:])


def reads(mask: Tensor) -> Tensor:
    """The columns of proj, as one slice a head."""
    return mask.view(len(mask), HEADS, -1)


def some_dead(model: nn.Module) -> dict[str, Tensor]:
    """Heads and neurons that died in every way there is: not read, not made, half and half."""
    masks = all_alive(model)
    values(masks["blocks.0.attn.qkv.weight"])[0] = False
    reads(masks["blocks.0.attn.proj.weight"])[:, 2] = False
    values(masks["blocks.1.attn.qkv.weight"])[3, :2] = False
    reads(masks["blocks.1.attn.proj.weight"])[:, 3, 2:] = False
    masks["blocks.0.mlp.fc1.weight"][:20] = False
    masks["blocks.0.mlp.fc2.weight"][:, 15:30] = False
    masks["blocks.1.mlp.fc2.weight"][:, -5:] = False
    if model.attn_pool is not None:
        masks["attn_pool.mlp.fc1.weight"][::2] = False
        values(masks["attn_pool.kv.weight"].repeat(2, 1)[: 3 * 16])[1] = False
    return masks


def dead_mlp() -> dict[str, Tensor]:
    return {"blocks.0.mlp.fc1.weight": torch.zeros(NEURONS, 16, dtype=torch.bool)}


def dead_inputs() -> dict[str, Tensor]:
    """Two features of three inputs that no weight reads."""
    masks = {
        name: torch.ones(size, 16, dtype=torch.bool)
        for name, size in (
            ("blocks.1.attn.qkv.weight", 48),
            ("blocks.1.attn.proj.weight", 16),
            ("blocks.1.mlp.fc1.weight", NEURONS),
        )
    }
    for mask in masks.values():
        mask[:, [3, 9]] = False
    return masks


def everything_cut() -> nn.Module:
    """Heads, neurons and a branch removed, inputs gathered."""
    model = model_of()
    return gather_inputs(shrink(model, masked(model, some_dead(model) | dead_mlp() | dead_inputs()), branches=True))
