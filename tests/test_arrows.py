"""Imports point one way, and a stage of the pipeline depends on all the code that its notebook runs."""

import ast
import json
from fnmatch import fnmatch
from pathlib import Path

import pytest
from ruamel.yaml import YAML

import svite
from svite import notebooks

ROOT = Path(__file__).parent.parent
BASE = {"svite", "svite._torchvision", "svite.paths"}
MAY_IMPORT = {
    "yaml": set(),
    "recipe": {"yaml"},
    "study": {"recipe"},
    "paths": set(),
    "_torchvision": set(),
    "sparsity": {"sparsity"},
    "vit": {"vit", "sparsity"},
    "tokens": {"tokens", "vit", "sparsity"},
    "store": {"store", "tokens", "vit", "sparsity"},
    "methods": {"methods", "tokens", "vit", "sparsity"},
    "penalty": {"methods"},
    "train": {"train", "store", "methods", "tokens", "vit", "sparsity", "recipe", "study"},
    "deployment": {"deployment", "methods", "store", "vit", "sparsity", "recipe", "study"},
    "report": {"report", "recipe", "study"},
}
ON_TOP = {"notebooks", "warm", "provisioner", "locks", "pipeline", "chores", "cli", "training", "__main__"}


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in (ROOT / "svite").rglob("*.py")}


def named(node: ast.AST) -> set[str]:
    """The modules of svite that one import statement, or one `svite.name` of the lazy package, loads."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names if alias.name.split(".")[0] == "svite"}
    if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "svite":
        full = {f"{node.module}.{alias.name}" for alias in node.names}
        lazy = {
            svite._HOMES[alias.name] for alias in node.names if node.module == "svite" and alias.name in svite._HOMES
        }
        return {node.module} | (full & MODULES.keys()) | lazy
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "svite":
        return {svite._HOMES[node.attr]} if node.attr in svite._HOMES else set()
    return set()


def imports(code: str) -> set[str]:
    """All modules of svite that a piece of code imports, inside functions too; not those for type checkers only."""
    tree = ast.parse(code)
    skipped = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for statement in node.body
        for inner in ast.walk(statement)
    }
    return {name for node in ast.walk(tree) if node not in skipped for name in named(node)}


def part_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "svite"


@pytest.mark.parametrize("module", sorted(MODULES.keys() - {"svite"}))
def test_no_import_points_the_wrong_way(module):
    part = part_of(module)
    if part in ON_TOP or module.endswith("__main__"):
        return
    found = imports(MODULES[module].read_text()) - BASE
    wrong = {name for name in found if part_of(name) not in MAY_IMPORT[part]}
    assert not wrong, f"{module} must not import {', '.join(sorted(wrong))}"


def test_every_part_of_the_library_has_its_place():
    assert {part_of(module) for module in MODULES} - {"svite"} == MAY_IMPORT.keys() | ON_TOP


def test_a_wrong_arrow_would_be_seen():
    assert imports("def f():\n    from svite.train import loop") == {"svite.train", "svite.train.loop"}
    assert imports("import svite\nsvite.cost(model)") == {"svite", "svite.vit.cost"}
    assert imports("from svite import workspace") == {"svite", "svite.paths"}
    assert imports("if TYPE_CHECKING:\n    from svite.train import loop") == set()


# Stages


def stages() -> dict[str, dict]:
    return YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]


def notebook_of(stage: dict) -> str | None:
    """The notebook that a stage runs: the word after `svite.notebooks run`."""
    words = stage["cmd"].split() if isinstance(stage["cmd"], str) else " ".join(stage["cmd"]).split()
    return words[words.index("run") + 1] if "run" in words and "svite.notebooks" in words else None


def reached(notebook: str) -> set[str]:
    """All modules that a notebook imports, and those that these import; of methods only the package is entered."""
    cells = json.loads((ROOT / "notebooks" / f"{notebook}.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    todo, seen = set().union(*(imports(cell) for cell in code)), set()
    while todo:
        module = todo.pop()
        packages = {module.rsplit(".", depth)[0] for depth in range(1, module.count(".") + 1)}
        if module not in seen and module in MODULES:
            seen.add(module)
            todo |= packages | (set() if module == "svite.methods" else imports(MODULES[module].read_text()))
    return {module for module in seen if part_of(module) != "methods"}


def covers(dependency: str, path: Path) -> bool:
    relative = str(path.relative_to(ROOT))
    return relative == dependency or relative.startswith(f"{dependency}/")


RUNNING = {name: stage for name, stage in stages().items() if notebook_of(stage)}


@pytest.mark.parametrize("name", RUNNING)
def test_a_stage_depends_on_all_that_its_notebook_imports(name):
    stage = RUNNING[name]
    notebook = notebook_of(stage)
    assert f".nb/{notebook}.ipynb" in stage["deps"]
    modules = reached(notebook)
    assert "svite.paths" in modules  # every notebook begins with svite.workspace()
    code = notebooks.CODE if ".nb/training.txt" in stage["deps"] else ()
    missing = [m for m in modules if not any(covers(dep, MODULES[m]) for dep in (*stage["deps"], *code))]
    assert not missing, f"stage {name} runs {', '.join(sorted(missing))} and does not depend on it"


def test_the_checksums_are_made_again_when_the_code_changes(tmp_path, monkeypatch):
    assert set(notebooks.CODE) <= set(stages()["notebooks"]["deps"])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "code").mkdir()
    for name, text in (("code/a.py", "a"), ("code/b.txt", "b"), ("c.py", "c")):
        (tmp_path / name).write_text(text)
    before = notebooks.checksums(["code", "c.py"])
    assert [line.split()[1] for line in before.splitlines()] == ["c.py", "code/a.py"]
    (tmp_path / "code/a.py").write_text("A")
    assert notebooks.checksums(["code", "c.py"]) != before


@pytest.mark.parametrize("name", RUNNING)
def test_a_stage_depends_on_its_own_method_and_those_that_it_is_made_of(name):
    stage = RUNNING[name]
    found = [dep for dep in stage["deps"] if fnmatch(dep, "svite/methods*")]
    words = stage["cmd"].split()
    method = next((word.removeprefix("method=") for word in words if word.startswith("method=")), None)
    sparse = method not in (None, "dense", "half")
    assert found == ([f"svite/methods/{method}.py", *parts_of(stage)] if sparse else [])


def parts_of(stage: dict) -> list[str]:
    """The files of methods that the methods of a matrix call."""
    axis = str(stage.get("matrix", {}).get("method", ""))
    grid = YAML(typ="safe").load(ROOT / "params.yaml")["grid"]
    called = {
        module
        for method in grid.get(axis.removeprefix("${grid.").removesuffix("}"), ())
        for module in imports(MODULES[f"svite.methods.{method}"].read_text())
        if module.startswith("svite.methods.")
    }
    return sorted(str(MODULES[module].relative_to(ROOT)) for module in called)


def test_a_forgotten_dependency_would_be_seen():
    assert {"svite.sparsity.mask", "svite.train.loop", "svite.vit.cost", "svite"} <= reached("20_sparse")
    assert not covers("svite/train/loop", ROOT / "svite" / "train" / "loop.py")
    assert covers("svite/train", ROOT / "svite" / "train" / "loop.py")
