"""The notebooks stay short, plain and mostly prose, and the pipeline's parameters fit them."""

import ast
import json
import re
import shlex
from pathlib import Path
from statistics import median

import pytest

from svite.params.study import load
from svite.pipeline import plan
from svite.pipeline.notebooks import declared, read_yaml

ROOT = Path(__file__).parents[1]
NUMBERED = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
STAGES = {name: stage.get("do", stage) for name, stage in read_yaml(ROOT / "dvc.yaml")["stages"].items()}
STUDY = load(ROOT / "params.yaml")

TUTORIALS = sorted((ROOT / "notebooks/tutorials").glob("*.ipynb"))
each_notebook = pytest.mark.parametrize("path", [*NUMBERED, *TUTORIALS], ids=lambda path: path.stem)
each_stage = pytest.mark.parametrize(
    "name", [name for name, stage in STAGES.items() if "notebooks run" in stage["cmd"]]
)


def cells(path: Path, kind: str) -> list[dict]:
    found = json.loads(path.read_text())["cells"]
    return [cell | {"source": "".join(cell["source"])} for cell in found if cell["cell_type"] == kind]


def lines(cell: dict) -> list[str]:
    return [line for line in cell["source"].splitlines() if line.strip()]


def test_there_are_notebooks():
    assert len(NUMBERED) >= 7


@each_notebook
def test_code_cells_are_few_and_short(path):
    lengths = [len(lines(cell)) for cell in cells(path, "code")]
    assert len(lengths) <= 12
    assert median(lengths) <= 6
    assert max(lengths) <= 15


@each_notebook
def test_nothing_is_defined(path):
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda
    nodes = [n for cell in cells(path, "code") for n in ast.walk(ast.parse(cell["source"]))]
    assert not [node for node in nodes if isinstance(node, kinds)]


@each_notebook
def test_there_is_more_prose_than_code(path):
    words = sum(len(re.findall(r"\w+", cell["source"])) for cell in cells(path, "markdown"))
    code = sum(len(lines(cell)) for cell in cells(path, "code"))
    assert words >= 3 * code


@each_notebook
def test_it_opens_with_the_question_and_closes_with_the_gap(path):
    prose = [cell["source"] for cell in cells(path, "markdown")]
    assert prose[0].startswith("# ")
    assert re.search(r"\bpaper", prose[0])
    assert re.search(r"\bgap\b", prose[-1])


@each_notebook
def test_first_the_workspace_then_the_parameters(path):
    first, second = cells(path, "code")[:2]
    assert "svite.workspace()" in first["source"]
    assert second["metadata"].get("tags") == ["parameters"]
    assert "folder" in declared({"cells": [second]})


@each_notebook
def test_parameters_are_plain_literals(path):
    body = ast.parse(cells(path, "code")[1]["source"]).body
    names = set()
    for statement in body:
        assert isinstance(statement, ast.Assign)
        used = {n.id for n in ast.walk(statement.value) if isinstance(n, ast.Name)}
        assert used <= names, "a value may only repeat a parameter above it"
        assert not [n for n in ast.walk(statement.value) if isinstance(n, ast.Call)]
        names |= {target.id for target in statement.targets}
    assert next(s.value.value for s in body if s.targets[0].id == "folder") == "scratch"


@each_notebook
def test_it_is_stored_without_outputs(path):
    for cell in cells(path, "code"):
        assert cell["outputs"] == []
        assert cell["execution_count"] is None


def passed(cmd: str) -> tuple[str, set[str]]:
    """The notebook that a command runs, and the parameters that it names."""
    words = shlex.split(cmd)
    given = {words[i + 1].split("=")[0] for i, word in enumerate(words) if word == "-p"}
    return words[words.index("run") + 1], given | {"folder"}


def takes(notebook: str) -> set[str]:
    return set(declared({"cells": cells(ROOT / f"notebooks/{notebook}.ipynb", "code")}))


@each_stage
def test_a_stage_passes_what_its_notebook_declares(name):
    notebook, given = passed(STAGES[name]["cmd"])
    notebooks = {plan.notebook(planned) for planned in STUDY.runs} if notebook.startswith("$") else {notebook}
    assert all(given <= takes(each) for each in notebooks)


@pytest.mark.parametrize("planned", {plan.notebook(planned): planned for planned in STUDY.runs}.values())
def test_a_run_passes_what_its_notebooks_declare(planned):
    given = set(plan.parameters(planned))
    assert given <= takes(plan.notebook(planned))
    assert given <= takes("40_evaluate")
    assert {"method", "density", "seed", "model", "recipe"} <= given


@each_stage
def test_a_stage_depends_on_its_copy_and_its_code(name):
    notebook, _ = passed(STAGES[name]["cmd"])
    assert {f".nb/{notebook}.ipynb", f".nb/code/{notebook}.txt"} <= set(STAGES[name]["deps"])


@each_stage
def test_a_stage_keeps_its_executed_notebook(name):
    words = STAGES[name]["cmd"].split()
    notebook, *more = words[words.index("run") + 1 :]
    stem = f"{notebook}-{more[0]}" if more[:1] == ["${key}"] else notebook
    assert f"reports/notebooks/{stem}.ipynb" in STAGES[name]["outs"]


def test_every_notebook_is_a_stage():
    run = {passed(stage["cmd"])[0] for stage in STAGES.values() if "notebooks run" in stage["cmd"]}
    run |= {plan.notebook(planned) for planned in STUDY.runs}
    assert {name for name in run if not name.startswith("$")} == {path.stem for path in NUMBERED}
