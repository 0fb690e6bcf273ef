"""`python -m svite.pipeline.notebooks`: canonical copies, and runs that leave the same bytes every time."""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from tiny_notebooks import PARAMETERS, RUN, make, run, save, start, text

from svite.pipeline import copies, notebooks, plan

ROOT = Path(__file__).parents[1]


@pytest.fixture
def place(tmp_path, monkeypatch):
    return make(tmp_path, monkeypatch)


# ---- clean --------------------------------------------------------------------------------------


def test_saving_a_notebook_does_not_change_its_copy(place):
    save("a", "1 + 1", "")
    copies.clean()
    before = Path(".nb/a.ipynb").read_bytes()
    save("a", "1 + 1")  # other ids, and the empty last cell is gone
    copies.clean()
    assert Path(".nb/a.ipynb").read_bytes() == before
    save("a", "1 + 2")
    copies.clean()
    assert Path(".nb/a.ipynb").read_bytes() != before


def test_a_copy_names_the_python_kernel_and_holds_no_outputs(place):
    save("a", "1 + 1")
    copies.clean()
    copy = json.loads(Path(".nb/a.ipynb").read_text())
    assert copy["metadata"] == {"kernelspec": copies.KERNEL}
    assert [cell["id"] for cell in copy["cells"]] == ["0", "1"]
    assert copy["cells"][0]["metadata"] == {"tags": ["parameters"]}
    assert all(not c["outputs"] and c["execution_count"] is None for c in copy["cells"])


def test_a_dropped_notebook_loses_its_copy(place):
    save("a", "1")
    save("b", "1")
    copies.clean()
    Path("notebooks/a.ipynb").unlink()
    copies.clean()
    assert [path.name for path in Path(".nb").glob("*.ipynb")] == ["b.ipynb"]


# ---- parameters ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "value"),
    [("1e-3", 0.001), ("true", True), ("0", 0), ("0.90", 0.9), ("null", None), ("yes", "yes")],
)
def test_parameters_are_typed_as_dvc_types_them(given, value):
    name, read = notebooks.parameter(f"x={given}")
    assert (name, read, type(read)) == ("x", value, type(value))


def test_declared_names_several_targets_and_dicts():
    cell = {"metadata": {"tags": ["parameters"]}, "source": PARAMETERS}
    assert notebooks.declared({"cells": [cell]}) == ["folder", "lr", "fast", "name", "model"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["a", "-p", "rate=1"], "a has no parameter 'rate'; its parameters cell has: folder, lr,"),
        (["a", "-p", "rate"], "-p rate should read -p name=value."),
        (["a", "svite-0.4-0"], "params.yaml has no run svite-0.4-0; those that it has are named in runs.yaml."),
        (["a", "svite-0.5-0-pool-uniform"], "a has no parameter 'density'; its parameters cell has: folder, lr,"),
        (["b"], "There is no notebook notebooks/b.ipynb."),
        (["a", "../x"], "params.yaml has no run ../x; those that it has are named in runs.yaml."),
        (["a", "-p", "lr=[1"], "'[1' is not valid YAML: "),
        (["a", "-p", "lr=" + "[" * 9999], "'[[[[[[[[[["),
    ],
)
def test_what_cannot_be_run_is_refused_in_one_sentence(place, arguments, sentence):
    save("a", "1")
    code, out, err = run(*arguments)
    assert code == 1
    assert out == ""
    assert err.startswith(f"svite: {sentence}")
    assert err.count("\n") == 1
    assert not Path("reports").exists()


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"cells": [3]}', '{"cells": [{}]}', '{"cells":' + "[" * 99_999]
)
def test_a_file_that_is_no_notebook_is_one_sentence(place, content):
    Path("notebooks/a.ipynb").write_text(content)
    with pytest.raises(
        notebooks.NotebookError, match=r"^notebooks/a\.ipynb is no notebook \(.*\); save it anew, or .*\.$"
    ):
        copies.clean()


def test_a_plan_of_another_study_is_refused(place):
    save("a", "1")
    params = Path("params.yaml")
    params.write_text(params.read_text().replace("[0.5]", "[0.5, 0.25]"))
    sentence = (
        r"^runs\.yaml is not of this params\.yaml; `svite plan` writes it anew, and `make repro` does so first\.$"
    )
    with pytest.raises(notebooks.NotebookError, match=sentence):
        copies.clean()
    assert not Path(".nb").exists()


def test_a_run_that_left_the_study_leaves_no_parameters(place):
    copies.clean()
    assert {path.name for path in Path(".nb/runs").iterdir()} == {"dense-0.json", "svite-0.5-0-pool-uniform.json"}
    params = Path("params.yaml")
    params.write_text(params.read_text().replace(", pool: uniform", ""))
    plan.write_plan()
    copies.clean()
    assert {path.name for path in Path(".nb/runs").iterdir()} == {"dense-0.json", "svite-0.5-0.json"}


@pytest.mark.parametrize(
    ("old", "new"), [("SViTE", "Sparse"), ("seeds: [0]", "seeds: [0, 1]"), ("data: data", "data: d")]
)
def test_what_is_not_of_a_run_leaves_its_parameters_alone(place, old, new):
    copies.clean()
    before = Path(".nb/runs/dense-0.json").read_bytes()
    params = Path("params.yaml")
    params.write_text(params.read_text().replace(old, new))
    plan.write_plan()
    copies.clean()
    assert Path(".nb/runs/dense-0.json").read_bytes() == before


# ---- determinism --------------------------------------------------------------------------------

NOISY = """
import os, time, warnings
print(f"method {method} options {options} lr {recipe['lr']!r} {lr!r}")
print(f"fast {fast!r} folder {folder} threads {os.environ['OMP_NUM_THREADS']}")
for epoch in range(3):
    print(f"epoch {epoch + 1}/3  {time.time()}", flush=True)
    time.sleep(0.05)
print(object())
warnings.warn("with the path of a cell in it")
print(sorted({"a", "b", "c"}, key=hash)[0] is None)
"""
DRAWING = """
import matplotlib.pyplot as plt
plt.plot([1, 2])
plt.savefig("figure.svg")
plt.savefig("figure.pdf")
object()
"""


def test_two_runs_leave_the_same_bytes(place, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    save("a", NOISY, DRAWING, parameters=RUN)
    arguments = ("a", "svite-0.5-0-pool-uniform", "-p", "lr=1e-3", "-p", "fast=true")
    made = []
    for _ in range(2):
        code, out, err = run(*arguments)
        assert code == 0, err
        names = ("reports/notebooks/a-svite-0.5-0-pool-uniform.ipynb", "figure.svg", "figure.pdf")
        made.append([Path(name).read_bytes() for name in names])
    assert made[0] == made[1]
    assert out.count("epoch ") == 3
    assert "TCP" not in err
    said = text("a-svite-0.5-0-pool-uniform")
    assert "epoch" not in said
    assert "method svite options {'pool': 'uniform'} lr 0.001 0.001\nfast True folder . threads 1" in said
    assert not list(Path(".scratch/notebooks").glob("*.ipynb"))
    assert not list(Path("reports/notebooks").glob(".*"))


def test_the_user_may_ask_for_more_threads(place, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    save("a", "import os; print(os.environ['OMP_NUM_THREADS'])")
    assert run("a")[0] == 0
    assert text("a") == "2\n"


def test_progress_is_seen_while_it_happens(place):
    save("a", "import time\nfor i in range(3): print('epoch', i, flush=True); time.sleep(0.5)")
    with start("a") as process:
        times = [time.monotonic() for line in process.stdout if line.startswith("epoch")]
    assert process.returncode == 0
    assert len(times) == 3
    assert times[2] - times[0] > 0.8


# ---- failure ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "last", "short"),
    [
        ("raise ValueError('density 2 is outside (0, 1].')", "density 2 is outside (0, 1].", True),
        ("open('nowhere')", "[Errno 2] No such file or directory: 'nowhere'", True),
        ("{}['key']", "KeyError: 'key'", False),
        ("import sys; sys.exit(0)", "a left by sys.exit before its end: later cells never ran.", True),
        ("import os; os.kill(os.getpid(), 9)", "The kernel of a was killed, most likely", True),
    ],
)
def test_a_failure_ends_with_its_sentence_and_leaves_no_output(place, source, last, short):
    save("a", source, "open('later', 'w')")
    code, _, err = run("a")
    assert code == 1
    assert err.splitlines()[-1].startswith(f"svite: {last}")
    assert ("Traceback" not in err and "----" not in err) == short
    assert Path(".scratch/notebooks/a.ipynb").exists()
    assert not Path("reports").exists()
    assert not Path("later").exists()


def test_a_full_disk_leaves_no_half_written_output(place):
    save("a", "for _ in range(2000): print('x' * 60)")
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
    process = start("a", preexec_fn=limit)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.splitlines()[-1].startswith("svite: [Errno 27] File too large")
    assert not Path("reports").exists()


@pytest.mark.parametrize("sign", [2, 9, 15])
def test_no_kernel_outlives_its_runner(place, sign):
    save("a", "print('epoch on', flush=True)\nimport time; time.sleep(600)")
    process = start("a", start_new_session=True)
    assert process.stdout.readline() == "epoch on\n"
    kernels = psutil.Process(process.pid).children(recursive=True)
    assert kernels
    process.send_signal(sign)
    process.communicate(timeout=120)
    assert process.returncode != 0
    assert psutil.wait_procs(kernels, timeout=60)[1] == []
    assert not Path("reports").exists()


def test_a_runner_ends_with_its_parent(place):
    save("a", "print('epoch on', flush=True)\nimport time; time.sleep(600)")
    line = [sys.executable, "-m", "svite.pipeline.notebooks", "run", "a"]
    code = f"import subprocess; subprocess.run({line!r})"
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout.readline() == "epoch on\n"
    family = psutil.Process(parent.pid).children(recursive=True)
    assert len(family) == 2
    parent.kill()
    assert psutil.wait_procs(family, timeout=60)[1] == []
    parent.communicate()
