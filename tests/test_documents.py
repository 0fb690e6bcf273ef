"""What the documents show, run as shown."""

import re
import warnings
from pathlib import Path

import pytest
import torch

import svite
from svite.params.recipe import read
from svite.params.run import Training

ROOT = Path(__file__).parent.parent


def python_blocks(document: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / document).read_text(), re.MULTILINE | re.DOTALL)


def test_the_training_loop_of_the_readme_runs(capsys: pytest.CaptureFixture[str]):
    block, _, _ = python_blocks("README.md")
    seen: dict = {}
    exec(block, seen)
    assert seen["sparsifier"].step == 1
    assert abs(seen["sparsifier"].density - 0.5) < 1e-5
    assert "blocks.0.attn.qkv.weight" in capsys.readouterr().out


def test_the_small_model_of_the_readme_is_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    _, block, _ = python_blocks("README.md")
    monkeypatch.chdir(tmp_path)
    seen: dict = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        exec(block, seen)
    loaded, _ = svite.load("small.safetensors")
    assert [block.attn.num_heads for block in loaded.blocks] == [2] * 12
    assert svite.cost(loaded).macs < 0.5 * svite.cost(seen["model"]).macs
    assert Path("small.onnx").stat().st_size > 1e6


def test_the_deployed_model_of_the_readme_is_deployed(capsys: pytest.CaptureFixture[str]):
    _, _, block = python_blocks("README.md")
    seen: dict = {}
    exec(block, seen)
    assert set(seen["fast"].choice.values()) <= {"dense", "csr", "block16", "block32", "eager"}
    assert "pays_from" in capsys.readouterr().out


def test_the_method_of_contributing_trains():
    (block,) = python_blocks("CONTRIBUTING.md")
    seen: dict = {}
    exec(block, seen)
    model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = seen["mine"](model, 0.25, 20, interval=5)
    before = {name: alive.clone() for name, alive in sparsifier.masks.items()}
    for _ in range(20):
        optimizer.zero_grad()
        model(torch.randn(8, 16)).square().mean().backward()
        sparsifier.before_step(optimizer)
        optimizer.step()
        sparsifier.after_step()
    assert abs(sparsifier.density - 0.25) < 0.01
    assert any(not torch.equal(before[name], alive) for name, alive in sparsifier.masks.items())


DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_document_links_to_is_there(document):
    links = re.findall(r"\]\(([^)\s#]+)(?:#[^)]*)?\)", document.read_text())
    own = [link for link in links if "://" not in link]
    assert not [link for link in own if not (document.parent / link).exists()]


def test_files_of_the_code_that_documents_name_are_there():
    for document in DOCUMENTS:
        if document.name != "LOG.md":  # which tells of files that were
            named = re.findall(r"`((?:svite|tests|notebooks|recipes|docs)/[\w./-]+\.\w+)`", document.read_text())
            assert not [name for name in named if not (ROOT / name).exists() and "mine" not in name], document


def test_the_readme_lists_every_method():
    table = re.findall(r"^\| `(\w+)` \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert sorted(table) == sorted(svite.methods.__all__)


def test_every_recipe_is_a_run():
    for recipe in (ROOT / "recipes").glob("*.yaml"):
        assert read(recipe, Training).data
