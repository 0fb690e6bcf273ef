"""The words for what a saved model may hold that timm did not put there: each module as plain values."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Any

import torch
from timm.layers import LayerScale
from torch import nn

from svite.tokens import Attentive, Learned, Selector, select
from svite.vit.parts import Select, Zero

Description = list[Any]  # a word and its arguments, as JSON holds them
Arguments = dict[str, Any]


@dataclass(frozen=True)
class Word:
    """A kind of module, what tells one of them from another, how to make one of that, and of what it consists."""

    kind: type[nn.Module]
    describe: Callable[[nn.Module], Arguments]
    make: Callable[..., nn.Module]
    takes: Mapping[str, type | UnionType]


def _linear(layer: nn.Linear) -> Arguments:
    return {"in_features": layer.in_features, "out_features": layer.out_features, "bias": layer.bias is not None}


def _select(gather: Select) -> Arguments:
    return {"kept": len(gather.index)}


def _make_select(kept: int) -> Select:
    return Select(torch.zeros(kept, dtype=torch.int64))


def _zero(branch: Zero) -> Arguments:
    return {"width": None if branch.bias is None else len(branch.bias)}


def _make_zero(width: int | None) -> Zero:
    return Zero(None if width is None else nn.Parameter(torch.zeros(width)))


def _scale(scale: LayerScale) -> Arguments:
    return {"dim": len(scale.gamma), "inplace": scale.inplace}


WORDS = {
    "Identity": Word(nn.Identity, lambda layer: {}, nn.Identity, {}),
    "LayerScale": Word(LayerScale, _scale, LayerScale, {"dim": int, "inplace": bool}),
    "Linear": Word(nn.Linear, _linear, nn.Linear, {"in_features": int, "out_features": int, "bias": bool}),
    "Select": Word(Select, _select, _make_select, {"kept": int}),
    "Zero": Word(Zero, _zero, _make_zero, {"width": int | None}),
}
SCORERS = {"Attentive": Attentive, "Learned": Learned}


def described(module: nn.Module | None) -> Description | None:
    """The word for a module and its arguments; None where there is no word for it."""
    if type(module) is nn.Sequential:
        parts = [described(part) for part in module]
        return None if None in parts else ["Sequential", {"parts": parts}]
    if type(module) is Selector:
        return ["Selector", {"keep": module.keep, "scorer": type(module.scorer).__name__}]
    return next(([name, word.describe(module)] for name, word in WORDS.items() if type(module) is word.kind), None)


def put(model: nn.Module, at: str, description: Description) -> None:
    """Make what is described, in its place in the model; its tensors hold nothing of value yet.

    Raises ValueError for what is no description, and for a token selector that scores by anything but `SCORERS`.
    """
    word, arguments = description
    if word != "Selector":
        model.set_submodule(at, _made(word, arguments))
        return
    _refuse_others(word, arguments, {"keep": int | float, "scorer": str})
    index = at.removeprefix("blocks.").removesuffix(".selector")
    if at != f"blocks.{index}.selector" or not index.isdecimal():
        raise ValueError(f"a selector can't stand at {at}, but before a block")
    if arguments["scorer"] not in SCORERS:
        raise ValueError(f"{at}.scorer is a {arguments['scorer']}, not one of {', '.join(SCORERS)}")
    select(model, arguments["keep"], int(index), SCORERS[arguments["scorer"]])


def _made(word: str, arguments: Arguments) -> nn.Module:
    if word == "Sequential":
        _refuse_others(word, arguments, {"parts": list})
        return nn.Sequential(*(_made(part, inner) for part, inner in arguments["parts"]))
    if word not in WORDS:
        raise ValueError(f"{word} is no module that a file can hold; they are {', '.join(WORDS)}")
    _refuse_others(word, arguments, WORDS[word].takes)
    return WORDS[word].make(**arguments)


def _refuse_others(word: str, arguments: Arguments, takes: Mapping[str, type | UnionType]) -> None:
    """ValueError for other arguments: one that says on which device or of which dtype would be made there and then."""
    kinds = {name: type(value) for name, value in arguments.items()}
    if kinds.keys() != takes.keys() or not all(issubclass(kinds[name], kind) for name, kind in takes.items()):
        raise ValueError(f"{word} takes {', '.join(takes) or 'nothing'}, and not {arguments!r}")
