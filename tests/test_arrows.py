"""Imports point one way."""

from pathlib import Path

import pytest

from svite.pipeline import code

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {  # each what stands above it, and itself
    "params": set(),
    "sparsity": set(),
    "vit": {"sparsity"},
    "tokens": {"vit", "sparsity"},
    "calibration": {"vit", "sparsity"},
    "methods": {"tokens", "vit", "sparsity"},
    "io": {"tokens", "vit", "sparsity"},
    "data": {"io", "vit", "sparsity", "params"},
    "train": {"data", "io", "methods", "tokens", "vit", "sparsity", "params"},
    "study": {"train", "data", "io", "tokens", "vit", "sparsity", "params"},
    "deployment": {"methods", "io", "vit", "sparsity", "params"},
    "report": {"io", "sparsity", "params"},
    "pipeline": {"report", "study", "train", "data", "io", "params"},
}


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in (ROOT / "svite").rglob("*.py")}


def part_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "svite"


@pytest.mark.parametrize("module", sorted(MODULES.keys() - {"svite"}))
def test_no_import_points_the_wrong_way(module):
    part = part_of(module)
    if part == "__main__" or module == "svite.train.__main__":
        return
    found = code.imports(MODULES[module].read_text()) - {"svite"}
    wrong = {name for name in found if part_of(name) not in {part, *MAY_IMPORT[part]}}
    assert not wrong, f"{module} must not import {', '.join(sorted(wrong))}"


def test_the_library_is_packages_that_stand_one_upon_the_other():
    assert {part_of(module) for module in MODULES} == MAY_IMPORT.keys() | {"svite", "__main__"}
    above: set[str] = set()
    for package, may in MAY_IMPORT.items():
        assert may <= above
        above.add(package)
