"""The words for what a saved model may hold that timm did not put there: each module as plain values."""

from collections.abc import Callable
from dataclasses import dataclass
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
    """A kind of module, what tells one of them from another, and how to make one of that."""

    kind: type[nn.Module]
    describe: Callable[[nn.Module], Arguments]
    make: Callable[..., nn.Module]


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


WORDS = {
    "Identity": Word(nn.Identity, lambda layer: {}, nn.Identity),
    "LayerScale": Word(LayerScale, lambda scale: {"dim": len(scale.gamma), "inplace": scale.inplace}, LayerScale),
    "Linear": Word(nn.Linear, _linear, nn.Linear),
    "Select": Word(Select, _select, _make_select),
    "Zero": Word(Zero, _zero, _make_zero),
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

    Raises ValueError for a token selector that scores by anything but `SCORERS`.
    """
    word, arguments = description
    if word != "Selector":
        model.set_submodule(at, _made(word, **arguments))
    elif arguments["scorer"] not in SCORERS:
        raise ValueError(f"{at}.scorer is a {arguments['scorer']}, not one of {', '.join(SCORERS)}")
    else:
        select(model, arguments["keep"], int(at.split(".")[1]), SCORERS[arguments["scorer"]])


def _made(word: str, **arguments: Any) -> nn.Module:
    if word == "Sequential":
        return nn.Sequential(*(_made(part, **inner) for part, inner in arguments["parts"]))
    return WORDS[word].make(**arguments)
