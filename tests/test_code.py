"""What a stage depends on: the syntax of all code of svite that its notebook runs, and nothing else."""

import hashlib
import json
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from dvc.repo import Repo
from hypothesis import given
from hypothesis import strategies as st
from tiny_notebooks import make, save

from svite.params.study import METHODS
from svite.pipeline import code, copies, notebooks

ROOT = Path(__file__).parent.parent
MODULE = """\"\"\"Says what.\"\"\"

from svite.vit import cost


class A:
    \"\"\"A class.\"\"\"

    x: int = 1  # why

    def f(self, a, b=(1, 2)):
        \"\"\"A function.\"\"\"
        return f"{a:>{b}} {cost}"
"""


# Checksums of syntax


@pytest.mark.parametrize(
    ("old", "new"),
    [
        *[("Says what.", "Says more."), ('    """A class."""\n', ""), ("A function", "B")],
        *[("  # why", ""), ("\n\n\n", "\n# here\n")],
    ],
)
def test_docstrings_comments_and_layout_change_nothing(old, new):
    assert old in MODULE
    assert code.syntax(MODULE.replace(old, new)) == code.syntax(MODULE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        *[("= 1", "= 2"), ("= 1", "= 1.0"), ("= 1", "= True"), ("int", "float"), ("(1, 2)", "[1, 2]"), ("b=", "*, b=")],
        *[(":>{b}", ""), ("{cost}", "cost"), ("vit", "train"), ("class A:", "class B:"), ("return ", "")],
        *[("return", "yield"), ("def f", "async def f")],
    ],
)
def test_all_else_does(old, new):
    assert old in MODULE
    assert code.syntax(MODULE.replace(old, new)) != code.syntax(MODULE)


def test_a_text_that_is_no_docstring_counts():
    assert code.syntax("def f():\n    x = 1\n    'a'") != code.syntax("def f():\n    x = 1\n    'b'")


@given(st.text(st.characters(codec="utf-8", exclude_characters="\r\f"), max_size=40), st.text(max_size=40))
def test_different_values_differ(one, other):
    assert (code.syntax(f"x = {one!r}") == code.syntax(f"x = {other!r}")) == (one == other)


# What is reached


def test_imports_are_found_wherever_they_stand():
    def found(text: str) -> set[str]:
        return code.imports(text) - {"svite"}

    assert found("def f():\n    from svite.train import loop") == {"svite.train", "svite.train.loop"}
    assert found("import svite\nsvite.cost(model)") == {"svite.vit.cost"}
    assert found("from svite import workspace") == {"svite.params.paths"}
    assert found("import_module('svite.vit._torchvision')") == {"svite.vit._torchvision"}
    assert found("if TYPE_CHECKING:\n    from svite.train import loop") == set()
    assert found("import torch\nfrom svite.vit.cost import macs, nothing") == {"svite.vit.cost"}
    assert found("import importlib\nimportlib.import_module('svite.vit.cost')") == {"svite.vit.cost"}
    assert found("import svite as s\ns.cost(model)") == {"svite.vit.cost"}
    assert found("import svite.report as r\nr.figures.accuracy(x)") == {"svite.report", "svite.report.figures"}
    assert found("from svite import report\nreport.figures") == {"svite.report", "svite.report.figures"}
    assert found("from svite import methods as m\nm.omp(model, 0.1)") == {"svite.methods", "svite.methods.omp"}
    assert found("import svite\nsvite.methods.omp(model)") == {"svite.methods", "svite.methods.omp"}
    with pytest.raises(SyntaxError, match=r"^imports are absolute here: from svite \.\.\."):
        code.imports("from . import loop")


def test_of_methods_a_notebook_reaches_none_and_each_method_its_own():
    reached = code.reached(["from svite.study import results"])
    assert {"svite", "svite.vit._torchvision", "svite.train.loop", "svite.sparsity.mask", "svite.vit.cost"} <= reached
    assert not [module for module in reached if module.startswith("svite.methods")]
    methods = {name: {m for m in code.behind_method(name) if m.startswith("svite.methods.")} for name in METHODS}
    assert methods["sviteplus"] == {"svite.methods.sviteplus", "svite.methods.svite"}
    assert methods["gmp"] == {"svite.methods.gmp"}
    assert "svite.tokens.selector" in code.behind_method("sviteplus")


def test_a_run_loads_nothing_that_is_not_reached(tmp_path):
    cells = ["from svite.study import results", "from svite.params.study import Run"]
    run = f"""
import sys; sys.path.insert(0, {str(ROOT / "tests")!r})
{chr(10).join(cells)}
from pathlib import Path
from tiny_runs import a_run, data
trained = results.train(a_run("sviteplus", density=0.5), data(Path({str(tmp_path)!r})), {str(tmp_path / "out")!r})
print(*(name for name in sys.modules if name.split(".")[0] == "svite"))
"""
    said = subprocess.run([sys.executable, "-c", run], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    loaded = set(said.splitlines()[-1].split())
    assert "svite.train.loop" in loaded
    expected = code.reached(cells).union(*map(code.behind_method, METHODS), {code.METHODS})
    assert loaded <= expected


# The stages


def stages() -> dict[str, Any]:
    return {stage.addressing: stage for stage in Repo(str(ROOT)).index.stages if stage.cmd}


STAGES = stages()
RUNNING = {
    name: shlex.split(stage.cmd) for name, stage in STAGES.items() if "svite.pipeline.notebooks run" in stage.cmd
}


@pytest.mark.parametrize("name", RUNNING)
def test_a_stage_depends_on_what_its_notebook_and_its_method_run(name):
    words, deps = RUNNING[name], {dep.def_path for dep in STAGES[name].deps}
    notebook = words[words.index("run") + 1]
    method = next((word.removeprefix("method=") for word in words if word.startswith("method=")), None)
    assert {f".nb/{notebook}.ipynb", f".nb/code/{notebook}.txt"} <= deps
    assert {dep for dep in deps if "/methods/" in dep} == (
        {f".nb/code/methods/{method}.txt"} if method in METHODS else set()
    )
    assert not {dep for dep in deps if dep.startswith("svite")}


def test_the_copies_are_made_again_when_any_code_changes():
    assert {dep.def_path for dep in STAGES["notebooks"].deps} == {"notebooks", "svite"}


@pytest.mark.parametrize("magic", ["%matplotlib inline", "!ls", "files = !ls", "import torch"])
def test_a_cell_may_hold_magic(tmp_path, monkeypatch, magic):
    make(tmp_path, monkeypatch)
    save("a", f"{magic}\nfrom svite.vit import cost")
    assert "svite.vit.cost" in copies.copies()[Path(".nb/code/a.txt")]


def test_a_cell_that_is_no_python_is_one_sentence(tmp_path, monkeypatch):
    make(tmp_path, monkeypatch)
    save("a", "def :")
    with pytest.raises(copies.NotebookError, match=r"^notebooks/a\.ipynb has a cell that is no Python \(.*\)\.$"):
        copies.clean()


def test_a_method_that_is_no_python_is_one_sentence(tmp_path, monkeypatch):
    make(tmp_path, monkeypatch)
    (tmp_path / "mine.py").write_text("def mine(:")
    monkeypatch.setattr(copies, "METHODS", ("mine",))
    monkeypatch.setattr(code, "_file", lambda module: tmp_path / f"{module.rsplit('.')[-1]}.py")
    with pytest.raises(copies.NotebookError, match=r"mine\.py, line 1, is no Python \(.*\)\.$"):
        copies.clean()


# The record


@cache
def recorded() -> dict[str, dict]:
    return notebooks.read_yaml(ROOT / "dvc.lock")["stages"]


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def md5_of(path: Path) -> str:
    """As DVC has it of files, and of folders."""
    if path.is_file():
        return md5(path.read_bytes())
    files = sorted(file for file in path.rglob("*") if file.is_file())
    listed = [{"md5": md5(file.read_bytes()), "relpath": str(file.relative_to(path))} for file in files]
    return md5(json.dumps(listed, sort_keys=True).encode()) + ".dir"


def test_the_record_is_of_the_committed_code(monkeypatch):
    monkeypatch.chdir(ROOT)
    made = {str(path): md5(text.encode()) for path, text in copies.copies().items()}
    deps = [(name, dep) for name, stage in recorded().items() for dep in stage.get("deps", ()) if ".nb/" in dep["path"]]
    assert len(deps) > 2 * len(recorded()) - 2
    assert not {name for name, dep in deps if made.get(dep["path"]) != dep["md5"]}, "run `make repro`"


def test_the_record_is_of_these_stages_and_parameters():
    params, found = notebooks.read_yaml(ROOT / "params.yaml"), recorded()
    assert found.keys() == STAGES.keys()
    for name, stage in found.items():
        assert stage["cmd"] == STAGES[name].cmd
        for path, value in stage.get("params", {}).get("params.yaml", {}).items():
            there = params
            for part in path.split("."):
                there = there[part]
            assert value == there, f"{name}: {path}"


def test_the_results_in_git_are_those_of_the_record():
    small = [out for stage in STAGES.values() for out in stage.outs if not out.use_cache and out.def_path != ".nb"]
    assert len(small) > 200
    written = {out["path"]: out["md5"] for stage in recorded().values() for out in stage["outs"]}
    assert not {out.def_path for out in small if written[out.def_path] != md5_of(ROOT / out.def_path)}
