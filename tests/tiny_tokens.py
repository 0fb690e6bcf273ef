"""Tiny models that select tokens, and an oracle that drops tokens by hand, one image at a time."""

import copy

import pytest
import timm
import torch
from tiny import VIT, batch, vit
from torch import Tensor, nn

from svite import tokens
from svite.sparsity.mask import count

SCORERS = {"learned": tokens.Learned, "attentive": tokens.Attentive}
VARIANTS = {
    "class token": {},
    "registers": {"reg_tokens": 4},
    "registers alone": {"reg_tokens": 2, "class_token": False, "global_pool": "avg"},
    "no prefix": {"class_token": False, "global_pool": "avg"},
    "qk norm, layer scale": {"qk_norm": True, "init_values": 0.1},
    "attention pool": {"class_token": False, "global_pool": "map"},
}
variants = pytest.mark.parametrize("name", [*VARIANTS, "distilled"])
scorers = pytest.mark.parametrize("scorer", SCORERS.values(), ids=SCORERS)


def variant(name: str, depth: int = 3, **arguments: object) -> nn.Module:
    """A tiny model whose attention is far from uniform."""
    if name == "distilled":
        torch.manual_seed(0)
        model = timm.create_model("deit_tiny_distilled_patch16_224", **VIT | {"depth": depth} | arguments)
    else:
        model = vit(depth=depth, **VARIANTS[name], **arguments)
    with torch.no_grad():
        for block in model.blocks:
            block.attn.qkv.weight.mul_(20)
            for weight in (*block.attn.q_norm.parameters(), *block.attn.k_norm.parameters()):
                weight.normal_()
    return model


def selected(name: str = "class token", keep: float = 0.5, at: tuple[int, ...] = (0, 2), **arguments) -> nn.Module:
    """The variant with selectors, at evaluation."""
    return tokens.select(variant(name), keep, at, **arguments).eval()


def lengths(model: nn.Module, images: Tensor) -> list[int]:
    """How many tokens each block's attention and MLP see."""
    seen: list[int] = []
    hooks = [
        norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
        for block in model.blocks
        for norm in (block.attn, block.mlp)
    ]
    model(images)
    for hook in hooks:
        hook.remove()
    return seen


def seeded(model: nn.Module, seed: int) -> Tensor:
    torch.manual_seed(seed)
    return model(batch(0)[0])


# By hand


def by_hand(scores: Tensor, keep: int) -> list[int]:
    """Which to keep: higher scores first, among equals the earlier; in ascending order."""
    values = scores.tolist()
    return sorted(sorted(range(len(values)), key=lambda place: (-values[place], place))[:keep])


def attention_received(block: nn.Module, x: Tensor, class_token: bool) -> Tensor:
    """What timm's own unfused attention gives each token: what goes into its dropout."""
    block, seen = copy.deepcopy(block), []
    block.attn.fused_attn = False
    block.attn.attn_drop.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    block(x)
    return seen[0][0, :, 0].mean(0) if class_token else seen[0][0].mean((0, 1))


def oracle(plain: nn.Module, model: nn.Module, image: Tensor) -> tuple[Tensor, list[list[int]]]:
    """Logits of one image through the model without selectors, tokens dropped by hand; and the patches left."""
    prefix = plain.num_prefix_tokens
    x = plain.norm_pre(plain._pos_embed(plain.patch_embed(image[None])))
    patches, left = list(range(x.shape[1] - prefix)), []
    for block, twin in zip(plain.blocks, model.blocks, strict=True):
        if hasattr(twin, "selector"):
            scorer = twin.selector.scorer
            if isinstance(scorer, tokens.Learned):
                scores = nn.functional.layer_norm(x[0], x.shape[-1:]) @ scorer.weight
            else:
                scores = attention_received(block, x, plain.cls_token is not None)
            chosen = by_hand(scores[prefix:], count(twin.selector.keep, len(patches)))
            patches = [patches[place] for place in chosen]
            left.append(patches)
            x = x[:, [*range(prefix), *(prefix + place for place in chosen)]]
        x = block(x)
    return plain.forward_head(plain.norm(x)), left
