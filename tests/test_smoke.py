"""The real pipeline, notebooks and all, at toy size in a temporary copy of this working tree.

One copy is run once and shared; a test that changes something changes a copy of it.
"""

import contextlib
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import toy
from ruamel.yaml import YAML

from svite.params import study
from svite.pipeline import chores
from svite.pipeline.notebooks import read_yaml

pytestmark = pytest.mark.xdist_group("smoke")
BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync
--disable-background-networking --disable-component-update --virtual-time-budget=20000"""


@pytest.fixture(scope="session")
def smoke(tmp_path_factory):
    """The toy study, run with two jobs and committed, and what that printed."""
    place = tmp_path_factory.mktemp("smoke") / "study"
    with contextlib.chdir(toy.ROOT):
        chores.toy_copy(place)
    code, out = repro(place)
    assert code == 0, out
    toy.commit(place)
    return place, out


@pytest.fixture
def place(smoke, tmp_path):
    return shutil.copytree(smoke[0], tmp_path / "study", symlinks=True)


def repro(place: Path, *arguments: str) -> tuple[int, str]:
    """`svite repro --jobs 2` there, with that copy's svite."""
    return toy.svite(place, *(arguments or ("repro", "--jobs", "2")), PYTHONPATH=str(place))


def done(out: str) -> set[str]:
    """The stages that a pipeline's output says it ran."""
    return set(re.findall(r"^\[\d+/\d+\] (\S+) took", out, re.MULTILINE))


def lock(place: Path) -> dict:
    return read_yaml(place / "dvc.lock")


def keys(place: Path, *groups: str) -> set[str]:
    asked = study.load(place / "params.yaml")
    return {planned.key for planned in (asked.among(*groups) if groups else asked.runs)}


# ---- what a run leaves --------------------------------------------------------------------------


def test_the_whole_study_runs(smoke):
    place, out = smoke
    tested = keys(place, "weights", "structures", "attention")
    assert {path.stem for path in (place / "metrics/train").iterdir()} == keys(place)
    assert {path.stem for path in (place / "metrics/test").iterdir()} == tested
    assert {path.stem for path in (place / "arrays/runs").iterdir()} == tested
    for name in ("report.pdf", "report.html"):
        assert (place / "reports" / name).stat().st_size > 50_000
    drawn = {path.stem for path in (place / "reports/figures").glob("*.svg")}
    assert len(drawn) >= 8
    assert drawn == {path.stem for path in (place / "reports/figures").glob("*.png")}
    assert out.splitlines()[-1] == "The report: reports/report.pdf, reports/report.html"
    assert not toy.left_over(place)


def test_executed_notebooks_hold_no_errors_warnings_or_progress(smoke):
    executed = sorted((smoke[0] / "reports/notebooks").glob("*.ipynb"))
    tested = keys(smoke[0], "weights", "structures", "attention")
    assert len(executed) == len(keys(smoke[0])) + len(tested) + 3  # data, figures, report
    for path in executed:
        cells = json.loads(path.read_text())["cells"]
        outputs = [output for cell in cells for output in cell.get("outputs", [])]
        assert {output["output_type"] for output in outputs} <= {
            "stream",
            "display_data",
            "execute_result",
        }
        assert {output.get("name", "stdout") for output in outputs} <= {"stdout"}
        assert "\nepoch " not in "".join(output.get("text", "") for output in outputs)


def test_a_second_run_finds_nothing_to_do(smoke):
    code, out = repro(smoke[0])
    assert code == 0
    assert out.startswith(chores.IDLE)


def test_a_clone_rebuilds_the_figures_without_data_or_models(smoke, tmp_path):
    clone = tmp_path / "clone"
    chores.git("clone", "--quiet", str(smoke[0]), str(clone))
    assert not (clone / "data").exists()
    assert not (clone / "models").exists()
    shutil.rmtree(clone / "reports/figures")
    code, out = repro(clone, "figures")
    assert code == 0, out
    assert chores.git("status", "--short", cwd=clone) == ""


@pytest.mark.slow
@pytest.mark.parametrize("name", [path.stem for path in sorted(toy.ROOT.glob("notebooks/[0-9]*.ipynb"))])
def test_run_all_in_jupyter_writes_to_scratch_only(place, name):
    command = [sys.executable, "-m", "jupyter", "nbconvert", "--to", "notebook", "--execute", "--stdout"]
    options = {"cwd": place, "env": toy.environment(PYTHONPATH=str(place)), "timeout": 600}
    run = subprocess.run([*command, f"notebooks/{name}.ipynb"], capture_output=True, text=True, **options)
    assert run.returncode == 0, run.stderr
    assert chores.git("status", "--short", cwd=place) == ""
    assert toy.dvc(place, "status") == "Data and pipelines are up to date.\n"


# ---- what a change costs ------------------------------------------------------------------------


@pytest.mark.slow
def test_saving_a_notebook_reruns_no_notebook(place):
    path = place / "notebooks/20_sparse.ipynb"
    notebook = json.loads(path.read_text())
    for number, cell in enumerate(notebook["cells"]):
        cell["id"] = f"cell-{number}"
        if cell["cell_type"] == "code":
            cell |= {"execution_count": number, "outputs": []}
    notebook["metadata"]["language_info"] = {"name": "python", "version": "3.99"}
    path.write_text(json.dumps(notebook))
    code, out = repro(place)
    assert (code, done(out)) == (0, {"notebooks"})


@pytest.mark.slow
def test_editing_a_figure_retrains_nothing(place):
    with (place / "svite/report/style.py").open("a") as file:
        file.write("CHANGED = True\n")
    code, out = repro(place)
    assert code == 0
    assert {"notebooks", "figures"} <= done(out) <= {"notebooks", "figures", "report"}


@pytest.mark.slow
def test_a_comment_and_a_docstring_rerun_nothing(place):
    for name in ("sparsity/mask.py", "train/loop.py", "report/style.py"):
        path = place / "svite" / name
        path.write_text(path.read_text().replace('"""', '"""Changed. ', 1) + "# a change\n")
    code, out = repro(place)
    assert (code, done(out)) == (0, {"notebooks"})


@pytest.mark.slow
def test_a_change_of_one_method_reruns_its_runs(place):
    with (place / "svite/methods/gmp.py").open("a") as file:
        file.write("CHANGED = True\n")
    code, out = repro(place)
    assert code == 0
    trained = {stage for stage in done(out) if "@" in stage}
    assert trained
    assert all(stage.startswith(("train@gmp-", "evaluate@gmp-")) for stage in trained)


@pytest.mark.slow
def test_a_method_of_ones_own_as_contributing_has_it(place):
    """To the letter: its file, its entry, lint, a run, and the tests that know of methods."""
    blocks = dict(re.findall(r"```(python|yaml)\n(.*?)```", (place / "CONTRIBUTING.md").read_text(), re.DOTALL))
    (place / "svite/methods/mine.py").write_text(blocks["python"])
    params = place / "params.yaml"
    settings = [*read_yaml(params)["settings"], *read_yaml(blocks["yaml"])]
    YAML().dump(read_yaml(params) | {"settings": settings}, params)
    for check in (["check"], ["format", "--check"]):
        assert subprocess.run([sys.executable, "-m", "ruff", *check], cwd=place).returncode == 0
    code, out = repro(place)
    assert code == 0, out
    assert done(out) == {"notebooks", "train@mine-0.3-0", "evaluate@mine-0.3-0", "figures", "report"}
    assert "Mine" in (place / "reports/report.html").read_text()
    files = [f"tests/test_{name}.py" for name in ("options", "documents", "arrows", "methods_arguments")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    tested = subprocess.run(
        command, cwd=place, env=toy.environment(PYTHONPATH=str(place)), capture_output=True, text=True
    )
    assert tested.returncode == 0, tested.stdout[-3000:]


@pytest.mark.slow
def test_a_dropped_value_leaves_the_results(place):
    params = (place / "params.yaml").read_text()
    dropped = study.load(place / "params.yaml").densities[-1]
    (place / "params.yaml").write_text(re.sub(rf"\n *- {dropped:g}\b", "", params))
    mine = place / f"metrics/train/mine-{dropped:g}-0.json"
    mine.write_text("{}")  # of `svite train --output .`, say
    code, out = repro(place)
    assert code == 0, out
    assert "Removed, for the study has them no more: the results of evaluate@gmp-" in out
    assert done(out) == {"notebooks", "figures", "report"}
    left = [path for path in place.rglob("*") if f"-{dropped:g}-" in path.name and not {*path.parts} & {".dvc", ".git"}]
    assert left == [mine]
    assert f"-{dropped:g}-" not in (place / "dvc.lock").read_text()
    shown = json.loads(toy.dvc(place, "metrics", "show", "--json"))[""]["data"]
    assert {name for name in shown if f"-{dropped:g}-" in name} == {"metrics/train/" + mine.name}
    table = (place / "reports/tables/results.csv").read_text()
    assert str(dropped) not in {cell for line in table.splitlines() for cell in line.split(",")}


@pytest.mark.slow
def test_a_new_label_trains_nothing(place):
    params = (place / "params.yaml").read_text()
    (place / "params.yaml").write_text(
        params.replace("label: GMP", "label: Gradual").replace("rival: GMP", "rival: Gradual")
    )
    code, out = repro(place)
    assert (code, done(out)) == (0, {"notebooks", "figures", "report"}), out
    assert "Gradual" in (place / "reports/tables/results.html").read_text()


@pytest.mark.slow
def test_a_new_setting_trains_its_own_runs(place):
    values = read_yaml(place / "params.yaml")
    setting = {"label": "SViTE uniform", "method": "svite", "pool": "uniform", "densities": [0.3]}
    values["settings"].insert(3, setting)
    YAML().dump(values, place / "params.yaml")
    code, out = repro(place)
    assert code == 0, out
    key = "svite-0.3-0-pool-uniform"
    assert done(out) == {"notebooks", f"train@{key}", f"evaluate@{key}", "figures", "report"}
    assert "SViTE uniform" in (place / "reports/report.html").read_text()


@pytest.mark.slow
def test_a_study_of_its_own_runs_beside_it_and_rebuilds_from_git(place, tmp_path):
    """The same notebooks, code and commands; the study beside it is left alone."""
    folder = place / "studies/small"
    folder.mkdir(parents=True)
    values = read_yaml(place / "params.yaml") | {
        "data": "../../data",
        "densities": [0.3],
        "reference": None,
        "rival": None,
    }
    values["settings"] = [
        {"label": "Whole", "method": "dense"},
        {"label": "Thin", "method": "nm", "m": 8, "densities": [0.5]},
    ]
    YAML().dump(values, folder / "params.yaml")
    code, out = repro(place, "repro", "--jobs", "2", "--study", "small")
    assert code == 0, out
    keys = {"dense-0", "nm-0.5-0-m-8"}
    assert {path.stem for path in (folder / "metrics/test").iterdir()} == keys
    page = (folder / "reports/report.html").read_text()
    assert "Thin" in page
    assert not re.search("SViTE|digit|MNIST", re.sub(r"<[^>]*>", "", page.split("References")[0].split("</style>")[1]))
    assert toy.dvc(place, "status") == "Data and pipelines are up to date.\n"
    assert chores.git("status", "--short", "--", "metrics", "reports", "curves", "arrays", cwd=place) == ""
    code, out = repro(place, "repro", "--study", "small")
    assert (code, done(out)) == (0, set())
    toy.commit(place)
    clone = tmp_path / "clone"
    chores.git("clone", "--quiet", str(place), str(clone))
    shutil.rmtree(clone / "studies/small/reports/figures")
    code, out = repro(clone, "figures", "--study", "small")
    assert code == 0, out
    assert chores.git("status", "--short", cwd=clone) == ""
    code, out = repro(place, "figures", "--study", "smal")
    assert (code, out) == (1, "svite: There is no studies/smal/params.yaml; the nearest is small.\n")


# ---- the same bytes, whatever happened ----------------------------------------------------------


@pytest.mark.slow
def test_forced_one_at_a_time_it_leaves_the_same_lock(place):
    before = lock(place)
    toy.dvc(place, "repro", "--force")
    assert lock(place) == before
    assert chores.git("status", "--short", "--", "metrics", "curves", "reports", cwd=place) == ""


@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on_to_the_same_lock(place):
    before = lock(place)
    (place / "dvc.lock").unlink()
    for name in ("models", ".scratch", ".dvc/cache", ".dvc/tmp"):
        shutil.rmtree(place / name)
    with toy.start(place, "repro", "--jobs", "2", PYTHONPATH=str(place)) as process:
        for line in process.stdout:
            if found := re.match(r" *train@(\S+) +epoch +1/2", line):
                break
        while not list(place.glob(f".scratch/{found[1]}-*.ckpt")):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=30)
    assert toy.gone(place)  # what it started ends by itself
    code, out = repro(place)
    assert code == 0, out
    assert re.search(rf"@{found[1]} +epoch +2/2", out)
    assert not re.search(rf"@{found[1]} +epoch +1/2", out), "it should not start from the beginning"
    assert lock(place) == before


# ---- DVC's own commands -------------------------------------------------------------------------


@pytest.mark.slow
def test_metrics_and_experiments(place):
    shown = json.loads(toy.dvc(place, "metrics", "show", "--json"))[""]["data"]
    assert "metrics/test/dense-0.json" in shown
    toy.dvc(place, "exp", "run", "--name", "other", "-S", "rival=SET")
    assert read_yaml(place / "params.yaml")["rival"] == "SET"
    table = toy.dvc(place, "exp", "show", "--csv")
    assert "other" in table
    assert "rival" in table.splitlines()[0]
    (place / "metrics/train/dense-0.json").write_text('{"validation_top1": 1.0}')
    moved = json.loads(toy.dvc(place, "metrics", "diff", "--json"))
    assert moved["metrics/train/dense-0.json"]["validation_top1"]["new"] == 1.0


@pytest.mark.slow
@pytest.mark.skipif(not BROWSER, reason="needs Chromium")
def test_plots_draw_without_a_network(place, tmp_path):
    toy.dvc(place, "plots", "show", "--out", str(tmp_path / "plots"))
    page = (tmp_path / "plots/index.html").as_uri()
    command = [BROWSER, *FLAGS.split(), f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    assert len(re.findall(r'<canvas[^>]*class="marks"', dom)) == len(keys(place))
    assert "cdn.jsdelivr.net/npm/vega" not in dom
