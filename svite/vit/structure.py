"""Heads and neurons of a timm Vision Transformer, as units whose members are kept or pruned whole."""

from collections.abc import Callable, Iterator, Sequence

from timm.layers import Attention, Mlp
from torch import nn

from svite.sparsity.cut import Cut, Part, Unit
from svite.sparsity.layers import matching
from svite.sparsity.names import named_modules, named_parameters
from svite.sparsity.ready import weight_of

HEADS, NEURONS = "heads", "neurons"


def heads(model: nn.Module, layers: Sequence[str] | None = None) -> list[Unit]:
    """One unit an attention layer; a head is its rows of query, key and value and its columns of the projection.

    Args:
        model: a timm model.
        layers: name patterns of attention layers, "blocks.0.attn" say (default: all).

    Raises ValueError for a model without timm's `Attention`, and for a pattern that matches none of its layers.
    """
    return _units(model, layers, Attention, HEADS, _head_parts)


def neurons(model: nn.Module, layers: Sequence[str] | None = None) -> list[Unit]:
    """One unit an MLP; a neuron is a row of the first layer with its bias and a column of the second.

    Args:
        model: a timm model.
        layers: name patterns of MLPs, "blocks.0.mlp" say (default: all).

    Raises ValueError for a model without timm's `Mlp`, and for a pattern that matches none of its layers.
    """
    return _units(model, layers, Mlp, NEURONS, _neuron_parts)


def structures(model: nn.Module, layers: Sequence[str] | None = None) -> list[Unit]:
    """Heads, then neurons, of all layers; with `layers`, of those that match.

    Raises ValueError for a pattern that matches neither an attention layer nor an MLP.
    """
    found = [*heads(model), *neurons(model)]
    if layers is None:
        return found
    chosen = matching([unit.name.rpartition(".")[0] for unit in found], layers)
    return [unit for unit in found if unit.name.rpartition(".")[0] in chosen]


def _units(
    model: nn.Module,
    layers: Sequence[str] | None,
    kind: type[nn.Module],
    what: str,
    parts: Callable[[str, nn.Module], Iterator[Part]],
) -> list[Unit]:
    found = {name: module for name, module in named_modules(model).items() if isinstance(module, kind)}
    if not found:
        raise ValueError(f"{type(model).__name__} has no timm {kind.__name__} layer, so there are no {what} to prune.")
    gathered = [n for n, layer in found.items() if not all(isinstance(m, nn.Linear) for m in _linears(layer).values())]
    if gathered:
        raise ValueError(f"{gathered[0]} reads gathered features; its {what} can't be pruned any more.")
    chosen = found if layers is None else matching(found, layers)
    for layer in chosen:
        for child, linear in _linears(found[layer]).items():
            weight_of(f"{layer}.{child}", linear, "weight")
            weight_of(f"{layer}.{child}", linear, "bias")
    weights = named_parameters(model)
    return [
        Unit.of(f"{name}.{what}", parts(name, found[name]), weights, reader=f"{name}.{list(_linears(layer))[-1]}")
        for name, layer in found.items()
        if name in chosen
    ]


def _linears(layer: Attention | Mlp) -> dict[str, nn.Module]:
    names = ("qkv", "proj") if isinstance(layer, Attention) else ("fc1", "fc2")
    return {name: getattr(layer, name) for name in names}


def left(model: nn.Module) -> dict[str, int]:
    """How many heads and neurons each layer of a model has, by the name of their unit."""
    found = {}
    for name, layer in named_modules(model).items():
        if isinstance(layer, Attention):
            found[f"{name}.{HEADS}"] = layer.num_heads
        elif isinstance(layer, Mlp):
            found[f"{name}.{NEURONS}"] = layer.fc2.in_features
    return found


def _head_parts(name: str, attention: Attention) -> Iterator[Part]:
    rows = Cut("(three head dim) i -> 1 head (three dim i)", {"three": 3, "head": attention.num_heads})
    yield Part(f"{name}.qkv.weight", rows, outgoing=False)
    if attention.qkv.bias is not None:
        yield Part(f"{name}.qkv.bias", rows, outgoing=False)
    yield Part(f"{name}.proj.weight", Cut("o (head dim) -> 1 head (o dim)", {"head": attention.num_heads}))


def _neuron_parts(name: str, mlp: Mlp) -> Iterator[Part]:
    rows = Cut("neuron i -> 1 neuron i")
    yield Part(f"{name}.fc1.weight", rows, outgoing=False)
    if mlp.fc1.bias is not None:
        yield Part(f"{name}.fc1.bias", rows, outgoing=False)
    yield Part(f"{name}.fc2.weight", Cut("o neuron -> 1 neuron o"))
