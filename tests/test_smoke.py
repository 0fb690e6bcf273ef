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


def keys(place: Path) -> set[str]:
    asked = study.load(place / "params.yaml")
    runs = asked.grid.runs(asked.model, asked.recipe) + asked.pair.runs
    return {run.key for run in runs} | {study.key(study.HALF, 1.0, seed) for seed in asked.grid.seeds}


# ---- what a run leaves --------------------------------------------------------------------------


def test_the_whole_study_runs(smoke):
    place, out = smoke
    assert {path.stem for path in (place / "metrics/train").iterdir()} >= keys(place)
    assert set(json.loads((place / "metrics/test.json").read_text())) <= keys(place)
    for name in ("report.pdf", "report.html"):
        assert (place / "reports" / name).stat().st_size > 50_000
    drawn = {path.stem for path in (place / "reports/figures").glob("*.svg")}
    assert len(drawn) >= 8
    assert drawn == {path.stem for path in (place / "reports/figures").glob("*.png")}
    assert out.splitlines()[-1] == "The report: reports/report.pdf, reports/report.html"
    assert not toy.left_over(place)


def test_executed_notebooks_hold_no_errors_warnings_or_progress(smoke):
    executed = sorted((smoke[0] / "reports/notebooks").glob("*.ipynb"))
    assert len(executed) == len(keys(smoke[0])) + 4  # data, evaluate, figures, report
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
    assert all(stage.startswith("sparse@gmp-") for stage in trained)


@pytest.mark.slow
def test_adding_a_method_retrains_nothing(place):
    shutil.copy(place / "svite/methods/set.py", place / "svite/methods/another.py")
    code, out = repro(place)
    assert (code, done(out)) == (0, {"notebooks"})


@pytest.mark.slow
def test_a_dropped_value_leaves_the_results(place):
    params = (place / "params.yaml").read_text()
    dropped = study.load(place / "params.yaml").grid.densities[-1]
    (place / "params.yaml").write_text(re.sub(rf"\n *- {dropped:g}\b", "", params))
    code, out = repro(place)
    assert code == 0, out
    assert done(out) == {"evaluate", "figures", "report"}
    tested = json.loads((place / "metrics/test.json").read_text())
    assert tested
    assert not [key for key in tested if f"-{dropped:g}-" in key]
    table = (place / "reports/tables/results.csv").read_text()
    assert str(dropped) not in {cell for line in table.splitlines() for cell in line.split(",")}


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
            if found := re.match(r" *sparse@(\S+) +epoch +1/2", line):
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
    assert "metrics/test.json" in shown
    toy.dvc(place, "exp", "run", "--name", "fewer", "-S", "pair.images=50")
    assert read_yaml(place / "params.yaml")["pair"]["images"] == 50
    table = toy.dvc(place, "exp", "show", "--csv")
    assert "fewer" in table
    assert "pair.images" in table.splitlines()[0]
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
