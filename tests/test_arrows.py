"""Imports point one way."""

from pathlib import Path

import pytest

from svite import code

ROOT = Path(__file__).parent.parent
BASE = {"svite", "svite._torchvision", "svite.paths"}
MAY_IMPORT = {
    "yaml": set(),
    "recipe": {"yaml"},
    "options": {"recipe"},
    "study": {"options", "recipe"},
    "paths": set(),
    "_torchvision": set(),
    "sparsity": {"sparsity"},
    "vit": {"vit", "sparsity"},
    "tokens": {"tokens", "vit", "sparsity"},
    "store": {"store", "tokens", "vit", "sparsity"},
    "methods": {"methods", "tokens", "vit", "sparsity"},
    "train": {"train", "store", "methods", "tokens", "vit", "sparsity", "recipe", "study", "options"},
    "deployment": {"deployment", "methods", "store", "vit", "sparsity", "recipe", "study"},
    "report": {"report", "recipe", "study"},
}
ON_TOP = {"code", "notebooks", "warm", "provisioner", "locks", "pipeline", "chores", "cli", "training", "__main__"}


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in (ROOT / "svite").rglob("*.py")}


def part_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "svite"


@pytest.mark.parametrize("module", sorted(MODULES.keys() - {"svite"}))
def test_no_import_points_the_wrong_way(module):
    part = part_of(module)
    if part in ON_TOP or module.endswith("__main__"):
        return
    found = code.imports(MODULES[module].read_text()) - BASE
    wrong = {name for name in found if part_of(name) not in MAY_IMPORT[part]}
    assert not wrong, f"{module} must not import {', '.join(sorted(wrong))}"


def test_every_part_of_the_library_has_its_place():
    assert {part_of(module) for module in MODULES} - {"svite"} == MAY_IMPORT.keys() | ON_TOP
