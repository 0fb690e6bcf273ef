"""Finding the weight matrices of a model, by name."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from svite.sparsity.cut import Cut, Part, Unit, element
from svite.sparsity.names import named_modules, named_parameters
from svite.sparsity.ready import weight_of

Cutting = Callable[[nn.Module, Sequence[str] | None], list[Unit]]

_TRANSPOSED = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
_ONE_WEIGHT = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d | _TRANSPOSED


def weights(model: nn.Module, layers: Sequence[str] | None = None) -> dict[str, nn.Parameter]:
    """The weights of all linear, convolution and torch attention layers, or of those whose name matches a pattern.

    They are `weight` of a linear or convolution layer, transposed or not, and the projections of queries, keys and
    values of `nn.MultiheadAttention`, in one matrix or three. `uncovered` names what these leave out.

    Raises ValueError for a model without such a layer, for a pattern that matches none, and for a layer whose weight is
    computed from others, quantized or not there yet.
    """
    names = {id(parameter): name for name, parameter in named_parameters(model).items()}
    prunable = {name: module for name, module in named_modules(model).items() if _kinds(module)}
    if not prunable:
        raise ValueError(f"{type(model).__name__} has no prunable layer; it needs a linear or convolution layer.")
    found = {}
    for layer in prunable if layers is None else matching(prunable, layers):
        for kind in _kinds(prunable[layer]):
            weight = weight_of(layer, prunable[layer], kind)
            if weight is not None:
                found[names[id(weight)]] = weight
    return found


def _kinds(module: nn.Module) -> tuple[str, ...]:
    """The names of a layer's weights."""
    if isinstance(module, nn.MultiheadAttention):
        return "in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"
    packed = callable(getattr(type(module), "weight", None))  # a quantized layer of torch, no nn.Linear
    return ("weight",) if isinstance(module, _ONE_WEIGHT) or packed else ()


def uncovered(parameters: Mapping[str, Tensor], held: Collection[str]) -> dict[str, torch.Size]:
    """The shapes of parameters of two or more dimensions that are not among the held, which no density counts.

    Where none of the held is a matrix there are none to name: gates and scales count by themselves.
    """
    matrices = {name: parameter.shape for name, parameter in parameters.items() if parameter.dim() > 1}
    left_out = {name: shape for name, shape in matrices.items() if name not in held}
    return left_out if len(left_out) < len(matrices) else {}


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
    """One unit a weight matrix, each of whose entries is kept or pruned by itself."""
    return units(model, layers)


def units(model: nn.Module, layers: Sequence[str] | None = None, cut: Cut | None = None) -> list[Unit]:
    """One unit a weight, cut the same way (default: every weight by itself).

    Raises ValueError as `weights` does, and naming the layers that the cut does not divide.
    """
    cut = cut or element()
    whole, uneven = divided(model, cut, layers)
    if uneven:
        names = ", ".join(unit.name for unit in uneven)
        raise ValueError(f"'{cut.pattern}' does not divide {names}; leave these out of `layers`.")
    return whole


def divided(model: nn.Module, cut: Cut, layers: Sequence[str] | None = None) -> tuple[list[Unit], list[Unit]]:
    """Units of the weights that a cut divides, and units of the others, whose weights stand for themselves.

    A transposed convolution holds its inputs in rows, which no cut but that into single weights is meant for.
    """
    found = weights(model, layers)
    rows = {id(module.weight) for module in model.modules() if isinstance(module, _TRANSPOSED)}
    fits = {name: cut.fits(w.shape) and (cut == element() or id(w) not in rows) for name, w in found.items()}
    whole = [Unit.of(name, [Part(name, cut)], found) for name in found if fits[name]]
    return whole, [Unit.of(name, [Part(name, element())], found) for name in found if not fits[name]]
