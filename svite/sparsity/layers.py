"""Finding the weight matrices of a model, by name."""

from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase

from torch import nn

from svite.sparsity.cut import Cut, Part, Unit, element
from svite.sparsity.sharded import at_rest, refuse_flattened

Cutting = Callable[[nn.Module, Sequence[str] | None], list[Unit]]

_WRAPPERS = frozenset({"module", "_orig_mod"})


def plain_name(name: str) -> str:
    """A parameter's name without what DDP and torch.compile put in front.

    >>> plain_name("module._orig_mod.blocks.0.attn.qkv.weight")
    'blocks.0.attn.qkv.weight'
    """
    return ".".join(part for part in name.split(".") if part and part not in _WRAPPERS)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside of DDP and torch.compile."""
    inner = getattr(model, "_orig_mod", getattr(model, "module", None))
    return model if inner is None else unwrapped(inner)


def named_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Every parameter by its plain name, one that is tied by its first; what FSDP2 has sharded as its shards.

    Raises ValueError for a model whose weights FSDP1 or DeepSpeed has flattened.
    """
    refuse_flattened(model)
    at_rest(model)
    return {plain_name(name): parameter for name, parameter in model.named_parameters()}


def weights(model: nn.Module, layers: Sequence[str] | None = None) -> dict[str, nn.Parameter]:
    """The weights of all linear and convolution layers, or of those whose module name matches a pattern of `layers`.

    Raises ValueError for a model without such a layer and for a pattern that matches none.
    """
    parameters = named_parameters(model)
    layer_weights = {
        module.weight for module in model.modules() if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
    }
    found = {name: parameter for name, parameter in parameters.items() if parameter in layer_weights}
    if not found:
        raise ValueError(f"{type(model).__name__} has no prunable layer; it needs a linear or convolution layer.")
    if layers is None:
        return found
    names = {name.removesuffix(".weight"): name for name in found}
    return {names[layer]: found[names[layer]] for layer in matching(names, layers)}


def matching(names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """The names that match any of the patterns, in their own order.

    Raises ValueError for a pattern that matches none.
    """
    names = list(names)
    missing = [pattern for pattern in patterns if not any(fnmatchcase(name, pattern) for name in names)]
    if missing or not patterns:
        asked = ", ".join(missing) or "nothing"
        raise ValueError(f"No prunable layer is called {asked}; the model has {', '.join(names)}.")
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def elements(model: nn.Module, layers: Sequence[str] | None = None) -> list[Unit]:
    """One unit a weight matrix, each of whose entries lives or dies by itself."""
    return units(model, layers)


def units(model: nn.Module, layers: Sequence[str] | None = None, cut: Cut | None = None) -> list[Unit]:
    """One unit a weight, cut the same way (default: every weight by itself).

    Raises ValueError naming the layers that the cut does not divide.
    """
    cut = cut or element()
    found = weights(model, layers)
    uneven = [name for name, weight in found.items() if not cut.fits(weight.shape)]
    if uneven:
        raise ValueError(f"'{cut.pattern}' does not divide {', '.join(uneven)}; leave these out of `layers`.")
    return [Unit.of(name, [Part(name, cut)], found) for name in found]
