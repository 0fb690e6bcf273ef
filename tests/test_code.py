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

from svite.params.run import METHODS
from svite.params.study import Planned, load
from svite.pipeline import code, copies, notebooks, plan

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
    cells = ["from svite.study import results", "from svite.params.run import Run"]
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


STUDIES = [ROOT, *(path.parent for path in sorted(ROOT.glob("studies/*/dvc.yaml")))]
each_study = pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.name if path != ROOT else "default")


@cache
def all_stages() -> dict[str, Any]:
    return {stage.addressing: stage for stage in Repo(str(ROOT)).index.stages if stage.cmd}


def stages(study: Path) -> dict[str, Any]:
    """A study's stages, by their names in its own folder."""
    of = "" if study == ROOT else f"{study.relative_to(ROOT)}/dvc.yaml"
    found = {name.rpartition(":")[::2]: stage for name, stage in all_stages().items()}
    return {name: stage for (where, name), stage in found.items() if where == of}


def planned(study: Path) -> dict[str, Planned]:
    return {each.key: each for each in load(study / "params.yaml").runs}


@each_study
def test_a_stage_depends_on_what_its_notebook_and_its_method_run(study):
    runs, running = planned(study), stages(study)
    for name in running.keys() - {"notebooks"}:
        words, deps = shlex.split(running[name].cmd), {dep.def_path for dep in running[name].deps}
        notebook, *rest = words[words.index("run") + 1 :]
        stage, _, key = name.partition("@")
        assert {f".nb/{notebook}.ipynb", f".nb/code/{notebook}.txt"} <= deps, name
        methods = {f".nb/code/methods/{runs[key].run.method}.txt"} if stage == "train" else set()
        assert {dep for dep in deps if "/methods/" in dep} == methods, name
        assert (rest[:1] == [key]) == bool(key), name
        assert (f".nb/runs/{key}.json" in deps) == (stage in ("dense", "train")), name
        assert not {dep for dep in deps if dep.startswith("svite")}, name


@each_study
def test_the_stages_are_the_runs_of_the_study(study, monkeypatch):
    runs, there = planned(study), stages(study)
    trained = {name.partition("@")[2] for name in there if name.startswith(("dense@", "train@"))}
    assert trained == runs.keys()
    for key, each in runs.items():
        name = f"{'dense' if each.run.method == 'dense' else 'train'}@{key}"
        assert (f"evaluate@{key}" in there) == (each.group != "start")
        started = {dep.def_path for dep in there[name].deps if dep.def_path.startswith(("models", "metrics"))}
        start = f"models/{each.start}.safetensors", f"metrics/train/{each.start}.json"
        assert started == (set(start) if each.start else set())
    monkeypatch.chdir(study)
    assert Path("runs.yaml").read_text() == plan.text(load())
    assert Path("dvc.yaml").read_bytes() == (ROOT / "dvc.yaml").read_bytes()


def test_the_copies_are_made_again_when_any_code_or_parameter_changes():
    expected = {"./notebooks", "./svite", "params.yaml", "runs.yaml"}
    assert {dep.def_path for dep in stages(ROOT)["notebooks"].deps} == expected


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
def recorded(study: Path) -> dict[str, dict]:
    return notebooks.read_yaml(study / "dvc.lock")["stages"]


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def md5_of(path: Path) -> str:
    """As DVC has it of files, and of folders."""
    if path.is_file():
        return md5(path.read_bytes())
    files = sorted(file for file in path.rglob("*") if file.is_file())
    listed = [{"md5": md5(file.read_bytes()), "relpath": str(file.relative_to(path))} for file in files]
    return md5(json.dumps(listed, sort_keys=True).encode()) + ".dir"


@each_study
def test_the_record_is_of_the_committed_code_and_parameters(study, monkeypatch):
    monkeypatch.chdir(study)
    texts = copies.copies() | plan.parameter_files(load())
    made = {str(path): md5(text.encode()) for path, text in texts.items()}
    entries = recorded(study).items()
    deps = [(name, dep) for name, stage in entries for dep in stage.get("deps", ()) if ".nb/" in dep["path"]]
    assert len(deps) > 2 * len(entries) - 2
    assert not {name for name, dep in deps if made.get(dep["path"]) != dep["md5"]}, "run `make repro`"
    params = md5_of(Path("params.yaml"))
    assert {dep["md5"] for _, stage in entries for dep in stage["deps"] if dep["path"] == "params.yaml"} == {params}


@each_study
def test_the_record_is_of_these_stages(study):
    assert {name: stage["cmd"] for name, stage in recorded(study).items()} == {
        name: stage.cmd for name, stage in stages(study).items()
    }


@each_study
def test_the_results_in_git_are_those_of_the_record(study):
    small = [
        out for stage in stages(study).values() for out in stage.outs if not out.use_cache and out.def_path != ".nb"
    ]
    assert len(small) > 100
    written = {out["path"]: out["md5"] for stage in recorded(study).values() for out in stage["outs"]}
    assert not {out.def_path for out in small if written[out.def_path] != md5_of(study / out.def_path)}
    kept = {path for name in ("metrics", "curves", "arrays") for path in (study / name).rglob("*") if path.is_file()}
    assert kept == {study / out.def_path for out in small} & kept, "results of runs that the study no longer has"
