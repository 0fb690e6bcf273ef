"""What a parameter file may say to a method: its own arguments, by name, read from its signature. Imports no torch."""

import ast
import re
from collections.abc import Callable, Mapping
from functools import cache
from math import isfinite
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from svite.params.recipe import near, shown

METHODS = Path(__file__).parents[1] / "methods"
OF_THE_RUN = {"model": "model", "steps": "recipe.epochs", "seed": "seed"}
SHARES = ("density", "heads", "neurons", "keep")  # what a run's density is to a method that needs one of them told
FUNCTIONS = {
    "Cutting": {
        "elements": "svite.sparsity.layers.elements",
        "heads": "svite.vit.structure.heads",
        "neurons": "svite.vit.structure.neurons",
        "structures": "svite.vit.structure.structures",
    },
    "Allocation": {
        "uniform": "svite.sparsity.pool.uniform",
        "global": "svite.sparsity.pool.global_allocation",
        "with_branches": "svite.sparsity.pool.with_branches",
        "erk": "svite.sparsity.pool.erk",
    },
}


@cache
def arguments(method: str) -> Mapping[str, str]:
    """The annotation of each argument of a method, in order; empty where there is none.

    Raises ValueError for a file without a function of its name.
    """
    return {argument.arg: ast.unparse(argument.annotation or ast.Constant("")) for argument in _all(_signature(method))}


@cache
def shares(method: str) -> tuple[str, ...]:
    """The arguments that a run's density is given for: of these those without a default."""
    taken = _signature(method)
    defaults = dict(zip(reversed([*taken.posonlyargs, *taken.args]), reversed(taken.defaults), strict=False))
    optional = {argument.arg for argument in defaults} | {argument.arg for argument in taken.kwonlyargs}
    return tuple(name for name in SHARES if name in arguments(method) and name not in optional)


def _signature(method: str) -> ast.arguments:
    file = METHODS / f"{method}.py"
    try:
        body = ast.parse(file.read_text(encoding="utf-8"), str(file)).body
    except SyntaxError as error:
        raise ValueError(f"{file}, line {error.lineno}, is no Python ({error.msg})") from None
    found = next((node for node in body if isinstance(node, ast.FunctionDef) and node.name == method), None)
    if found is None:
        raise ValueError(f"{file} should define a function `{method}`")
    return found.args


def _all(taken: ast.arguments) -> list[ast.arg]:
    return [*taken.posonlyargs, *taken.args, *taken.kwonlyargs]


def refuse_wrong(method: str, options: Mapping[str, Any]) -> None:
    """ValueError for an option that the method does not have, that is the run's own, or of another type."""
    taken, share = arguments(method), shares(method)
    own = OF_THE_RUN | ({share[0]: "density"} if len(share) == 1 else {})
    for name, value in options.items():
        if name in own:
            raise ValueError(f"options: {name} is the run's own; set {own[name]}")
        if name not in taken:
            known = [each for each in taken if each not in own]
            raise ValueError(f"options: {method} has no option '{name}'; {near(name, known, 'options')}")
        known = FUNCTIONS.get(taken[name])
        if known and not (isinstance(value, str) and value in known):
            raise ValueError(f"options: there is no {name} '{value}'; {near(value, known, f'{name}s')}")
        fits, must = _KINDS.get(taken[name], (lambda _: True, ""))
        if not fits(value):
            raise ValueError(f"options: {name} should be {must}, not {shown(value)}")


def values(method: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as the method takes them: functions in the place of their names."""
    homes = {name: FUNCTIONS.get(arguments(method)[name]) for name in options}
    return {
        name: resolve_name(functions[value]) if (functions := homes[name]) else value for name, value in options.items()
    }


def words(options: Mapping[str, Any]) -> str:
    """The options as a part of a file's name.

    >>> words({"fraction": 0.3, "paper": True, "at": [3, 6]})
    '-fraction-0.3-paper-true-at-3,6'
    """
    return "".join(f"-{name}-{_word(value)}" for name, value in options.items())


def _word(value: Any) -> str:
    said = ",".join(map(_word, value)) if isinstance(value, list | tuple) else str(value).lower()
    return re.sub(r"[^\w.,+-]", "_", said)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _several(kind: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list | tuple) and all(map(kind, value))


_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "float": (_number, "a number"),
    "int": (_whole, "a whole number"),
    "bool": (lambda value: isinstance(value, bool), "true or false"),
    "int | Sequence[int]": (
        lambda value: _whole(value) or _several(_whole)(value),
        "a whole number, or a list of them",
    ),
    "Sequence[str] | None": (
        lambda value: value is None or _several(lambda each: isinstance(each, str))(value),
        "a list of name patterns, ['blocks.*.mlp.*'] say",
    ),
}
