"""pyproject.toml, requirements.lock and environment.yml say the same, and say all that is used."""

import ast
import json
import re
import sys
import tomllib
from importlib.metadata import metadata, packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from svite.pipeline.notebooks import read_yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def locked() -> dict[str, Version]:
    lines = (ROOT / "requirements.lock").read_text().split()
    pairs = [line.split("==") for line in lines]
    return {plain(name): Version(version) for name, version in pairs}


def declared(*extras: str) -> dict[str, Requirement]:
    texts = PROJECT["dependencies"] + [t for extra in extras for t in PROJECT["optional-dependencies"][extra]]
    return {plain(Requirement(text).name): Requirement(text) for text in texts if not text.startswith("svite[")}


@pytest.mark.parametrize("name", sorted(declared("onnx", "test")))
def test_the_lock_holds_a_version_that_the_project_accepts(name):
    assert declared("onnx", "test")[name].specifier.contains(locked()[name])


def test_the_lock_installs_on_any_machine():
    assert {str(locked()[name]) for name in ("torch", "torchvision")} == {"2.13.0", "0.28.0"}
    assert not [name for name, version in locked().items() if version.local]
    assert not [name for name in locked() if name.startswith(("nvidia", "cuda", "triton"))]
    assert "svite" not in locked()


def test_the_lock_installs_on_the_oldest_python_that_is_promised():
    oldest = PROJECT["requires-python"].removeprefix(">=") + ".0"
    wants = {name: metadata(name)["Requires-Python"] for name in locked()}
    assert not [name for name, python in wants.items() if python and oldest not in SpecifierSet(python)]


def test_conda_brings_python_and_takes_the_versions_from_the_lock():
    conda = read_yaml(ROOT / "environment.yml")
    python, pip, packages = conda["dependencies"]
    assert (conda["name"], pip) == ("svite", "pip")
    assert Version(python.removeprefix("python=")) in Requirement(f"python{PROJECT['requires-python']}").specifier
    assert packages == {"pip": ["-r requirements.lock", "-e ."]}


def sources() -> list[str]:
    """The text of every module, test, benchmark, example and notebook cell."""
    folders = ("svite", "tests", "benchmarks", "docs")
    texts = [path.read_text() for folder in folders for path in (ROOT / folder).rglob("*.py")]
    for path in (ROOT / "notebooks").rglob("*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        texts += ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    return [re.sub(r"^[%!].*", "", text, flags=re.MULTILINE) for text in texts]


def imported(text: str) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module)
    return {name.split(".")[0] for name in names}


def test_every_import_is_declared():
    local = {"svite", "tests", "benchmarks", "conftest"} | {p.stem for p in ROOT.glob("tests/*.py")}
    modules = set().union(*map(imported, sources())) - set(sys.stdlib_module_names) - local
    homes = packages_distributions()
    used = {module: {plain(name) for name in homes.get(module, (module,))} for module in modules}
    known = set(declared(*PROJECT["optional-dependencies"]))
    assert {module: names for module, names in used.items() if not names & known} == {}
