"""Training on what is active: attention and MLP layers that work on their active heads and neurons only.

The parameters stay whole, so the optimizer, its state, DDP and state_dict notice nothing; for the time of a forward
pass a layer sees gathered copies of its living rows and columns, and autograd scatters their gradients back.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from timm.layers import Attention, Mlp
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.hooks import RemovableHandle

from svite.sparsity.names import named_modules
from svite.sparsity.ownership import refuse_replaced
from svite.sparsity.sparsifier import Sparsifier
from svite.vit.structure import HEADS, NEURONS

Substitutes = Iterator[tuple[nn.Module, str, Any]]  # whose attribute, its name, and its value while a layer is narrow


@dataclass
class Narrowed:
    """The hooks; `.remove()` takes them off again."""

    handles: list[RemovableHandle]

    def remove(self) -> None:
        """Work on whole layers again."""
        for handle in self.handles:
            handle.remove()


def narrow(model: nn.Module, sparsifier: Sparsifier) -> Narrowed:
    """Let layers whose heads or neurons the sparsifier prunes skip the dead ones in training.

    The numbers are those of the masked run up to rounding (dropout inside of a layer draws others). Steps that look at
    gradients of the dead run whole, as do evaluation, compiled models, and layers with a gate or a norm between their
    two linear layers, or one of which FSDP2 gathers by itself.

    Raises ValueError for a model whose weights are not those that the sparsifier masks.
    """
    refuse_replaced(sparsifier.weights, model)
    handles: list[RemovableHandle] = []
    for name, module in named_modules(model).items():
        for kind, what, view in ((Attention, HEADS, _narrow_attention), (Mlp, NEURONS, _narrow_mlp)):
            unit = f"{name}.{what}"
            if isinstance(module, kind) and unit in sparsifier.units and _is_plain(module):
                enter = _Enter(sparsifier, unit, view)
                sparsifier.followers.append(enter)
                handles += [
                    module.register_forward_pre_hook(enter),
                    module.register_forward_hook(_leave, always_call=True),
                ]
    return Narrowed(handles)


def _is_plain(layer: Attention | Mlp) -> bool:
    gathered = any(isinstance(part, FSDPModule) for part in layer.children())  # only while it is at work
    return isinstance(layer.norm, nn.Identity) and getattr(layer, "gate", None) is None and not gathered


class _Enter:
    """Before a layer's forward pass: put gathered weights in the place of whole ones."""

    def __init__(self, sparsifier: Sparsifier | None = None, unit: str = "", view: Callable | None = None) -> None:
        self.sparsifier, self.unit, self.view = sparsifier, unit, view
        self._alive, self._index = None, torch.empty(0, dtype=torch.long)

    def __call__(self, module: nn.Module, _: tuple) -> None:
        if self.sparsifier is None or not module.training or torch.compiler.is_compiling():
            return
        narrowed = any("weight" in part.__dict__ for part in module.children())  # by an earlier call of `narrow`
        if narrowed or self.unit not in self.sparsifier.units or self.sparsifier.wants_dense_gradient:
            return
        if 0 < len(index := self._living()) < self.sparsifier.units[self.unit].size:
            for owner, name, value in self.view(module, index):
                owner.__dict__[name] = value  # hides the parameter of that name from forward, and from nothing else

    def _living(self) -> Int[Tensor, " member"]:
        alive = self.sparsifier.alive
        if alive is not self._alive:  # counting them asks the device, so once a topology
            self._alive, self._index = alive, alive[self.unit][0].nonzero().flatten()
        return self._index

    def __reduce__(self) -> tuple:
        return _Enter, (None, self.unit, self.view)  # a copy of the model alone has another life than its original


def _leave(module: nn.Module, *_: Any) -> None:
    for linear in module.children():
        for name in ("weight", "bias"):
            with suppress(KeyError):
                del linear.__dict__[name]
    if isinstance(module, Attention):
        module.num_heads = module.proj.in_features // module.head_dim
        module.attn_dim = module.proj.in_features


def _narrow_attention(attention: Attention, alive: Int[Tensor, " head"]) -> Substitutes:
    width = attention.head_dim
    columns = (alive[:, None] * width + torch.arange(width, device=alive.device)).flatten()
    rows = torch.cat([columns + part * attention.attn_dim for part in range(3)])
    yield attention.proj, "weight", attention.proj.weight.index_select(1, columns)
    yield from _rows(attention.qkv, rows)
    yield attention, "num_heads", len(alive)
    yield attention, "attn_dim", len(columns)


def _narrow_mlp(mlp: Mlp, alive: Int[Tensor, " neuron"]) -> Substitutes:
    yield mlp.fc2, "weight", mlp.fc2.weight.index_select(1, alive)
    yield from _rows(mlp.fc1, alive)


def _rows(linear: nn.Linear, rows: Int[Tensor, " row"]) -> Substitutes:
    yield linear, "weight", linear.weight.index_select(0, rows)
    if linear.bias is not None:
        yield linear, "bias", linear.bias.index_select(0, rows)
