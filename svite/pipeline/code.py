"""What a notebook runs: the modules of svite that it imports, and those that these import, each with a checksum of its
syntax. Comments, docstrings and layout are no part of it, so that none of them makes a stage run again."""

import ast
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

import svite

PACKAGE = Path(__file__).parents[1]
METHODS = "svite.methods"  # the package names all of them, and a stage runs one


def checksums(modules: Iterable[str]) -> str:
    """A line a module."""
    return "".join(f"{_checksum(_file(module))}  {module}\n" for module in sorted(modules))


def reached(code: Iterable[str]) -> set[str]:
    """The modules of svite behind pieces of code, packages included; of methods, only those imported by name."""
    todo, seen = {name for piece in code for name in imports(piece)}, set()
    while todo:
        module = todo.pop()
        if module not in seen:
            seen.add(module)
            todo.update(_packages(module), () if module == METHODS else _imports_of(_file(module)))
    return seen - {METHODS}


def behind_method(name: str) -> set[str]:
    """The modules of svite behind a method."""
    return reached([f"import {METHODS}.{name}"])


def imports(code: str, file: str | Path = "code") -> set[str]:
    """The modules of svite that a piece of code imports, inside functions too; not those for type checkers only.

    Raises SyntaxError, with the file's name, for what is no Python, and for imports relative to a package.
    """
    tree = ast.parse(code, str(file))
    skipped = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for statement in node.body
        for inner in ast.walk(statement)
    }
    nodes = [node for node in ast.walk(tree) if node not in skipped]
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.level:
            raise SyntaxError("imports are absolute here: from svite ...", (str(file), node.lineno, 0, ""))
    known = {name: module for node in nodes for name, module in _bound(node)}
    named = {name for node in nodes for name in (*_named(node), *_reached_through(node, known))}
    return {name for name in named if _file(name).is_file()}


def _bound(node: ast.AST) -> Iterator[tuple[str, str]]:
    """What an import calls modules of svite."""
    match node:
        case ast.Import(names=names):
            for alias in filter(lambda alias: _is_ours(alias.name), names):
                yield (alias.asname, alias.name) if alias.asname else ("svite", "svite")
        case ast.ImportFrom(module=str(module), names=names) if _is_ours(module):
            yield from ((alias.asname or alias.name, f"{module}.{alias.name}") for alias in names)


def _named(node: ast.AST) -> Iterator[str]:
    """What may be modules in an import, and in `import_module("svite.name")`."""
    match node:
        case ast.Import(names=names):
            yield from (alias.name for alias in names if _is_ours(alias.name))
        case ast.ImportFrom(module=str(module), names=names) if _is_ours(module):
            yield module
            yield from (name for alias in names for name in _attribute(module, alias.name))
        case ast.Call(
            func=ast.Name(id="import_module") | ast.Attribute(attr="import_module"),
            args=[ast.Constant(value=str(module)), *_],
        ) if _is_ours(module):
            yield module


def _reached_through(node: ast.AST, known: Mapping[str, str]) -> Iterator[str]:
    """What may be modules in `name.attribute`, where the name is of an import."""
    if isinstance(node, ast.Attribute):
        first, *rest = ast.unparse(node).split(".")
        if first in known:
            yield from _attribute(".".join([known[first], *rest[:-1]]), rest[-1])


def _attribute(module: str, name: str) -> list[str]:
    """A module of that name, or the home of what the lazy package calls so."""
    return [f"{module}.{name}", *([svite._HOMES[name]] if module == "svite" and name in svite._HOMES else [])]


def _is_ours(module: str) -> bool:
    return module.split(".")[0] == "svite"


def _packages(module: str) -> list[str]:
    return [module.rsplit(".", depth)[0] for depth in range(1, module.count(".") + 1)]


def _file(module: str) -> Path:
    place = PACKAGE.joinpath(*module.split(".")[1:])
    return place / "__init__.py" if place.is_dir() else place.with_suffix(".py")


@cache
def _imports_of(file: Path) -> frozenset[str]:
    return frozenset(imports(file.read_text(encoding="utf-8"), file))


@cache
def _checksum(file: Path) -> str:
    return hashlib.sha256(syntax(file.read_text(encoding="utf-8")).encode()).hexdigest()


def syntax(code: str) -> str:
    """The syntax tree as text, without docstrings: the same on every version of Python.

    >>> syntax("def f():\\n    'Says what.'\\n    return 1  # why") == syntax("def f(): return (1)")
    True
    """
    tree = ast.parse(code)
    for node in ast.walk(tree):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if documented and ast.get_docstring(node, clean=False) is not None:
            del node.body[0]
        if isinstance(node, ast.JoinedStr):  # some versions end it with an empty piece
            node.values = [piece for piece in node.values if getattr(piece, "value", None) != ""]
    return _written(tree)


def _written(node: object) -> str:
    if isinstance(node, list):
        return f"[{' '.join(map(_written, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    # Versions differ in which fields there are, and fill those that they add with nothing.
    fields = [f"{name}={_written(value)}" for name, value in ast.iter_fields(node) if value not in (None, [])]
    return f"{type(node).__name__}({' '.join(fields)})"
