"""`import svite` lets timm import beside a torchvision that does not fit torch, in any order, and costs nothing."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TORCHVISION = """
import torch
@torch.library.register_fake("torchvision::nms")
def nms(dets, scores, iou_threshold):
    return dets.new_empty(0)
transforms = "there"
"""
FITS = """
import torch
library = torch.library.Library("torchvision", "DEF")
library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""
MEANWHILE = """
import sys, importlib.util
assert importlib.util.find_spec("torchvision")
assert not {"torch", "torchvision", "timm", "numpy"} & set(sys.modules)
"""


def ended(program: str, *first: Path) -> subprocess.CompletedProcess[str]:
    """A process of its own that ran the program, looking for modules in these folders first."""
    path = os.pathsep.join(map(str, [*first, ROOT]))
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd="/", env=os.environ | {"PYTHONPATH": path}
    )


@pytest.fixture
def another(tmp_path):
    """A folder with a torchvision that does with its operators what the real one does, and has no extension."""
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(TORCHVISION)
    return tmp_path


def test_alone_such_a_torchvision_fails(another):
    failed = ended("import torchvision", another)
    assert "operator torchvision::nms does not exist" in failed.stderr


ORDERS = {
    "the readme's": "import svite, torchvision, torch",
    "torch first, a part of svite": "import torch, svite.params.study, torchvision",
    "looked for, then imported": f"import svite\n{MEANWHILE}\nimport torchvision",
    "after a failure": "try: import torchvision\nexcept RuntimeError: import svite, torchvision",
    "loaded again": "import svite, importlib, torchvision; importlib.reload(torchvision)",
}


@pytest.mark.parametrize("program", ORDERS.values(), ids=ORDERS)
def test_svite_mends_it_in_every_order(program, another):
    done = ended(f"{program}\nassert torchvision.transforms == 'there'", another)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("program", ["import svite, torchvision", "import torchvision, svite, svite.vit._torchvision"])
def test_one_that_fits_is_left_alone(program, another):
    done = ended(f"{FITS}\n{program}\nfrom svite.vit import _torchvision\nassert _torchvision.library is None", another)
    assert done.returncode == 0, done.stderr


def test_timm_imports_beside_the_torchvision_of_this_machine():
    done = ended("import svite, timm, torch, torchvision.transforms.v2\nsvite.methods, svite.tokens")
    assert done.returncode == 0, done.stderr


EXAMPLES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.[mp][dy]"))]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: str(path.relative_to(ROOT)))
def test_examples_import_svite_before_what_imports_torchvision(path):
    text = path.read_text()
    for block in re.findall(r"^```python\n(.*?)^```", text, re.M | re.S) if path.suffix == ".md" else [text]:
        lines = re.findall(r"^(?:import|from) +(.*)", block, re.M)
        imported = [re.split(r"[ .]", part)[0] for line in lines for part in line.split(" import")[0].split(", ")]
        first = imported.index("svite") if "svite" in imported else None
        assert not {"timm", "torchvision", "lightning", "transformers"} & set(imported[:first])
