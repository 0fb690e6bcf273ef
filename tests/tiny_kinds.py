"""Tiny models of every kind that can be saved."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import LayerScale
from tiny import VIT, vit
from torch import nn

from svite import methods
from svite.io.saved import save
from svite.sparsity.pool import uniform
from svite.sparsity.rule import Prune
from svite.sparsity.schedule import once
from svite.sparsity.score import magnitude
from svite.sparsity.sparsifier import Sparsifier
from svite.tokens import Attentive, select
from svite.vit.gather import gather_inputs
from svite.vit.shrink import shrink
from svite.vit.structure import heads

NAME = "vit_tiny_patch16_224"
DEEP = {**VIT, "depth": 3}
ROPE = {"img_size": 28, "patch_size": 14, "embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 5}


@dataclass
class Kind:
    """A model, its sparsifier, and how timm builds what it came from."""

    model: nn.Module
    sparsifier: Sparsifier | None = None
    build: tuple[str, dict[str, Any]] = (NAME, DEEP)


def saved(tmp_path: Path, kind: Kind) -> Path:
    path = tmp_path / "run.safetensors"
    save(kind.model, path, kind.sparsifier, build=kind.build)
    return path


def deep() -> nn.Module:
    """Three blocks in which every bias is its own."""
    model = vit(depth=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@torch.no_grad()
def cut(model: nn.Module, branches: bool = False) -> nn.Module:
    """One head less in block 0, three neurons less in block 1, and maybe both branches of block 2 gone."""
    model.blocks[0].attn.proj.weight[:, 8:] = 0
    model.blocks[1].mlp.fc1.weight[[3, 5, 60]] = 0
    if branches:
        model.blocks[2].attn.proj.weight.zero_()
        model.blocks[2].attn.proj.bias.zero_()
        model.blocks[2].mlp.fc2.weight.zero_()
    return shrink(model, branches=branches)


def gathered() -> nn.Module:
    model = deep()
    with torch.no_grad():
        model.blocks[0].attn.qkv.weight[:, [1, 4, 15]] = 0
        model.blocks[1].mlp.fc1.weight[:, 2:] = 0
    return gather_inputs(model)


def scaled() -> nn.Module:
    model = deep()
    model.blocks[1].ls1 = LayerScale(16, init_values=0.3)
    model.blocks[2].ls2 = LayerScale(16, init_values=0.7)
    return model


def tied() -> nn.Module:
    model = deep()
    model.blocks[2].mlp.fc1.weight = model.blocks[0].mlp.fc1.weight
    return model


def masked(model: nn.Module) -> Kind:
    return Kind(model, methods.omp(model, 0.1))


def headless() -> Kind:
    model = deep()
    return Kind(model, Sparsifier(model, uniform(heads(model), 0.5), Prune(magnitude), once(0)))


def rotary() -> Kind:
    torch.manual_seed(0)
    return Kind(timm.create_model("eva02_tiny_patch14_224", **ROPE), build=("eva02_tiny_patch14_224", ROPE))


KINDS: dict[str, Callable[[], Kind]] = {
    "dense": lambda: Kind(deep()),
    "masked": lambda: masked(deep()),
    "masked heads": headless,
    "zeros": lambda: Kind(masked(deep()).model),
    "shrunk": lambda: Kind(cut(deep())),
    "branches gone": lambda: Kind(cut(deep(), branches=True)),
    "gathered": lambda: Kind(gathered()),
    "layer scale": lambda: Kind(scaled()),
    "tokens": lambda: Kind(select(deep(), 0.5, at=(0, 2))),
    "attended tokens": lambda: Kind(select(deep(), 0.5, at=1, scorer=Attentive)),
    "all at once": lambda: masked(select(cut(deep(), branches=True), 0.6, at=1)),
    "bfloat16": lambda: Kind(deep().bfloat16()),
    "tied": lambda: Kind(tied()),
    "rotary": rotary,
}
