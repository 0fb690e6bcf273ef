"""What a parameter file may say to a method: its own arguments, by name, read from its signature. Imports no torch."""

import ast
import json
import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from pkgutil import resolve_name
from typing import Any
from zlib import crc32

from svite.params.recipe import near, shown

FOLDER = Path(__file__).parents[1] / "methods"
OF_THE_RUN = {"model": "model", "steps": "recipe.epochs", "seed": "seed"}
SHARES = ("density", "heads", "neurons", "keep")  # what a run's density is to a method that needs one of them told
FUNCTIONS = {  # arguments that are functions go by name, beside whatever else their annotation says
    "cut": {
        "elements": "svite.sparsity.layers.elements",
        "heads": "svite.vit.structure.heads",
        "neurons": "svite.vit.structure.neurons",
        "structures": "svite.vit.structure.structures",
    },
    "pool": {
        "uniform": "svite.sparsity.pool.uniform",
        "global": "svite.sparsity.pool.global_allocation",
        "isomorphic": "svite.sparsity.pool.isomorphic",
        "with_branches": "svite.sparsity.pool.with_branches",
        "erk": "svite.sparsity.pool.erk",
    },
    "schedule": {
        "cosine": "svite.sparsity.schedule.cosine",
        "linear": "svite.sparsity.schedule.straight",
        "constant": "svite.sparsity.schedule.constant",
    },
    "ramp": {"cubic": "svite.sparsity.schedule.cubic", "linear": "svite.sparsity.schedule.linear"},
    "at": {"quarters": "svite.tokens.places.quarters"},
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
    positional = [*taken.posonlyargs, *taken.args]
    needed = positional[: len(positional) - len(taken.defaults)]
    needed += [one for one, default in zip(taken.kwonlyargs, taken.kw_defaults, strict=True) if default is None]
    return tuple(name for name in SHARES if name in {argument.arg for argument in needed})


def _signature(method: str) -> ast.arguments:
    file = FOLDER / f"{method}.py"
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
        _refuse_misfit(name, value, taken[name])


def _refuse_misfit(name: str, value: Any, annotation: str) -> None:
    named, kinds = FUNCTIONS.get(name, {}), _kinds(annotation)
    if named:
        kinds = [kind for kind in kinds if kind != ANYTHING]  # the function itself is nothing that a file can hold
    if _is_name(name, value) or any(fits(value) for fits, _ in kinds):
        return
    if named and not kinds:
        raise ValueError(f"options: there is no {name} {shown(value)}; {near(value, named, f'{name}s')}")
    may_be = " or ".join([*(must for _, must in kinds), *named])
    raise ValueError(f"options: {name} should be {may_be}, not {shown(value)}")


def _is_name(name: str, value: Any) -> bool:
    return isinstance(value, str) and value in FUNCTIONS.get(name, {})


def values(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as a method takes them: functions in the place of their names."""
    return {
        name: resolve_name(FUNCTIONS[name][value]) if _is_name(name, value) else value
        for name, value in options.items()
    }


def plain(value: Any) -> Any:
    """The value as a file gives it back: lists in the place of tuples."""
    if isinstance(value, Mapping):
        return {name: plain(each) for name, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value


def words(options: Mapping[str, Any]) -> str:
    """The options as a part of a file's name; what is not simple by a checksum of it.

    >>> words({"paper": True, "at": [3, 6], "fraction": 0.3}), words({"layers": ["blocks.*"]})
    ('-at-3,6-fraction-0.3-paper-true', '-layers-2f02593d')
    """
    return "".join(f"-{name}-{_word(value)}" for name, value in sorted(options.items()))


def _word(value: Any) -> str:
    if isinstance(value, list) and value and all(map(_whole, value)):
        return ",".join(map(str, value))
    if isinstance(value, str) and re.fullmatch(r"[\w.+-]+", value, re.ASCII):
        return value
    written = json.dumps(value, default=repr)
    return written if _number(value) or value is None or isinstance(value, bool) else f"{crc32(written.encode()):08x}"


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _whole(value: Any) -> bool:
    return isinstance(value, int) and _number(value)


def _several(kind: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list | tuple) and all(map(kind, value))


Kind = tuple[Callable[[Any], bool], str]
ANYTHING: Kind = (lambda _: True, "")

_KINDS: dict[str, Kind] = {
    "float": (_number, "a number"),
    "int": (_whole, "a whole number"),
    "bool": (lambda value: isinstance(value, bool), "true or false"),
    "str": (lambda value: isinstance(value, str), "a word"),
    "None": (lambda value: value is None, "null"),
    "Sequence[int]": (_several(_whole), "a list of whole numbers"),
    "Sequence[str]": (_several(lambda value: isinstance(value, str)), "a list of words, ['blocks.*.mlp.*'] say"),
}


def _kinds(annotation: str) -> list[Kind]:
    """What a value may be; anything where the annotation, or a part of it, is another than those that are known."""
    parts = annotation.strip("'\"").split(" | ")
    return [_KINDS.get(part, ANYTHING) for part in parts]
