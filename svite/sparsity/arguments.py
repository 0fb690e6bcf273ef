"""What the arguments of a method may be, each by its name: one place for all methods, schedules, rules and pools."""

import inspect
from collections.abc import Callable, Sequence
from functools import wraps
from math import inf
from numbers import Integral, Real
from typing import ParamSpec, TypeVar

from torch import nn

from svite.sparsity.ready import refuse_unready

Arguments = ParamSpec("Arguments")
Made = TypeVar("Made")


def check(**arguments: object) -> None:
    """ValueError names the first argument that is not what one of its name must be, with its value."""
    for name, value in arguments.items():
        fits, must = _MUST.get(name, (lambda _: True, ""))
        if not fits(value):
            raise ValueError(f"{name} is {value!r}; it must {must}.")


def checked(method: Callable[Arguments, Made]) -> Callable[Arguments, Made]:
    """The method itself, but it refuses bad arguments, and a model that is not ready, before it changes anything."""
    signature = inspect.signature(method)

    @wraps(method)
    def checking(*arguments: Arguments.args, **named: Arguments.kwargs) -> Made:
        given = signature.bind(*arguments, **named).arguments
        check(**given)
        refuse_unready(given["model"])
        return method(*arguments, **named)

    return checking


def _number(value: object, low: float = -inf, high: float = inf) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and low <= value <= high and abs(value) < inf


def _whole(value: object, low: float = -inf) -> bool:
    return isinstance(value, Integral) and _number(value, low)


def _share(value: object) -> bool:
    return _number(value, 0, 1)


def _kept(value: object) -> bool:
    return _share(value) and value > 0


def _several(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _indices(value: object) -> bool:
    return all(map(_whole, value)) if _several(value) else _whole(value)


def _places(value: object) -> bool:
    return callable(value) or _indices(value)


def _patterns(value: object) -> bool:
    return value is None or (_several(value) and all(isinstance(pattern, str) for pattern in value))


_MUST: dict[str, tuple[Callable[[object], bool], str]] = {
    "model": (lambda value: isinstance(value, nn.Module), "be a torch.nn.Module"),
    **dict.fromkeys(("density", "initial", "keep", "heads", "neurons"), (_kept, "lie above 0 and at most at 1")),
    **dict.fromkeys(("fraction", "begin", "until", "progress", "salient"), (_share, "lie between 0 and 1")),
    **dict.fromkeys(
        ("steps", "interval", "batches", "batch", "rounds", "side", "block", "m", "r"),
        (lambda value: _whole(value, 1), "be a whole number of at least 1"),
    ),
    **dict.fromkeys(("start", "stop"), (lambda value: _number(value, 0) and value > 0, "be a number above 0")),
    **dict.fromkeys(("strength", "damping"), (lambda value: _number(value, 0), "be a number, and not below 0")),
    "seed": (_whole, "be a whole number"),
    "paper": (lambda value: isinstance(value, bool), "be True or False"),
    "at": (_places, "be the number of a block, or several, (3, 6, 9) say, or a function from the depth to these"),
    "layers": (_patterns, "be a list of name patterns, ['blocks.*.mlp.*'] say"),
    "cut": (callable, "be a function from a model to its units, svite.heads say"),
    "schedule": (callable, "be a function of a fraction and its last step, svite.sparsity.schedule.cosine say"),
    "ramp": (callable, "be a function of two values and two steps, svite.sparsity.schedule.cubic say"),
    "pool": (callable, "be a function from units and a density to pools, svite.with_branches say"),
}
