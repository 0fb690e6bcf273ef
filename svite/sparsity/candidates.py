"""Growth candidates: dead heads and neurons whose incoming weights are re-initialised, so that they can be scored.

With nothing coming in and nothing going out, a dead neuron sits on a saddle: every gradient of it is zero, and no score
can tell it from another (this stops the structured topologies of SViTE's released code). So for the forward pass of a
step whose gradients are scored, each of them gets new incoming weights. Its outgoing weights are zero, so the model
computes what it did; but their gradient now says what this neuron could do. Those that do not grow are masked again.
"""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable
from weakref import ref

import torch
from torch import Tensor, nn

from svite.sparsity.cut import Unit
from svite.sparsity.scoring import seeded
from svite.sparsity.sharded import full_tensor, local_shard, shard_like


@runtime_checkable
class Reinitialising(Protocol):
    """Who says when candidates are re-initialised: a sparsifier."""

    weights: Mapping[str, Tensor]
    reinitialises: bool

    def before_forward(self, model: nn.Module) -> None:
        """Before a forward pass with gradients."""


@torch.no_grad()
def reinitialise(
    units: list[Unit], weights: Mapping[str, Tensor], masks: Mapping[str, Tensor], seed: int, update: int
) -> None:
    """Fill dead incoming matrices with normal numbers, as long as the living of the same parameter on average.

    Where none is active, each output gets numbers of length 1 in all. What is drawn is a function of (active weights,
    seed, step of the update, parameter). Dead biases stay zero.
    """
    incoming = [part.name for unit in units for part in unit.parts if not part.outgoing]
    for name in incoming:
        weight, alive = weights[name], masks[name]
        if weight.dim() < 2 or bool(full_tensor(alive.all())):
            continue
        total, count = full_tensor(torch.where(alive, weight.square(), 0.0).sum()), full_tensor(alive.sum())
        length = total.div(count).sqrt().nan_to_num(weight.shape[1] ** -0.5)
        drawn = torch.randn(weight.shape, generator=seeded(seed, update, f"waiting/{name}"))
        fresh = local_shard(shard_like(drawn.to(weight.device, weight.dtype), weight)) * length
        local_shard(weight).copy_(torch.where(local_shard(alive), local_shard(weight), fresh))


class BeforeForward:
    """The hook on a model's forward pass, before that of FSDP2, which gathers what is re-initialised here.

    A copy of the model, an EMA say, takes no part in its training, unless the sparsifier was copied with it.
    """

    def __init__(self, sparsifier: Reinitialising | None = None) -> None:
        self.sparsifier = sparsifier

    @property
    def sparsifier(self) -> Reinitialising | None:
        """Who is asked, as long as anybody else holds it."""
        return self._asked()

    @sparsifier.setter
    def sparsifier(self, sparsifier: Reinitialising | None) -> None:
        self._asked = ref(sparsifier) if sparsifier else lambda: None

    @torch.compiler.disable  # it draws numbers, which a compiler can't follow; the model's own code is compiled
    def __call__(self, model: nn.Module, _: tuple) -> None:
        sparsifier = self.sparsifier
        if sparsifier and torch.is_grad_enabled():
            sparsifier.before_forward(model)

    def __reduce__(self) -> tuple:
        return BeforeForward, ()


def disable_earlier(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Let earlier sparsifiers of these weights re-initialise nothing any more, until they are used again."""
    own = {id(weight) for weight in weights.values()}
    for hook in model._forward_pre_hooks.values():
        earlier = hook.sparsifier if isinstance(hook, BeforeForward) else None
        if earlier and not own.isdisjoint(map(id, earlier.weights.values())):
            earlier.reinitialises = False
