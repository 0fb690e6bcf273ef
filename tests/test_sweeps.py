"""A sweep as docs/sweeps.md has it: experiments of the toy study in a queue, two workers, results brought back."""

import contextlib
import csv
import io
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
import toy

from svite.pipeline import chores
from svite.pipeline.notebooks import read_yaml

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("sweeps")]
T = TypeVar("T")
RATES = {"lr-1": 0.002, "lr-2": 0.02}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The toy study with its images, committed, nothing run."""
    place = tmp_path_factory.mktemp("sweep") / "study"
    with contextlib.chdir(toy.ROOT):
        chores.toy_copy(place)
    toy.commit(place)
    toy.dvc(place, "pull", "--remote", "bundled", "data.dvc")
    return place


def start_workers(place: Path, jobs: int) -> None:
    """`dvc queue start`; its workers keep its streams open, so that whoever reads them waits for the queue's end."""
    command = [sys.executable, "-m", "dvc", "queue", "start", "--jobs", str(jobs)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(command, cwd=place, env=toy.environment(PYTHONPATH=str(place)), check=True, **quiet)


def wait_for(condition: Callable[[], T], patience: float = 100) -> T:
    """The condition's value, once it is true."""
    end = time.monotonic() + patience
    while not (value := condition()):
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.5)
    return value


def states(place: Path, until: set[str]) -> dict[str, str]:
    """The state of each experiment of the queue, once all are in one of these."""

    def read() -> dict[str, str]:
        lines = toy.dvc(place, "queue", "status").split("\n\n")[0].splitlines()[1:]
        found = {words[1]: words[-1] for words in map(str.split, lines)}
        return found if set(found.values()) <= until else {}

    return wait_for(read)


def results(place: Path) -> dict[str, dict[str, str]]:
    """What `dvc exp show` says of each experiment."""
    rows = csv.DictReader(io.StringIO(toy.dvc(place, "exp", "show", "--csv")))
    return {row["Experiment"]: row for row in rows}


def test_two_workers_run_a_queue_and_a_result_comes_back(study):
    rates = ",".join(map(str, RATES.values()))
    toy.dvc(study, "exp", "run", "--queue", "--name", "lr", "--set-param", f"recipe.lr={rates}", "dense@dense-0")
    start_workers(study, jobs=2)
    assert states(study, until={"Success", "Failed"}) == dict.fromkeys(RATES, "Success")
    found = results(study)
    assert {name: float(found[name]["recipe.lr"]) for name in RATES} == RATES
    scores = {name: float(found[name]["validation_top1"]) for name in RATES}
    assert scores["lr-1"] != scores["lr-2"]
    assert read_yaml(study / "params.yaml")["recipe"]["lr"] not in RATES.values()
    assert not (study / "metrics").exists()

    toy.dvc(study, "exp", "branch", "lr-2", "faster")
    chores.git("checkout", "--quiet", "faster", cwd=study)
    toy.dvc(study, "checkout", "--allow-missing")
    assert read_yaml(study / "params.yaml")["recipe"]["lr"] == RATES["lr-2"]
    brought = json.loads((study / "metrics/train/dense-0.json").read_text())
    assert brought["validation_top1"] == scores["lr-2"]
    assert (study / "models/dense-0.safetensors").stat().st_size == brought["bytes"]
    assert re.findall(r"Running stage '(.*)'", toy.dvc(study, "repro", "dense@dense-0")) == ["notebooks"]
    assert toy.gone(study)  # idle workers end by themselves


def test_a_killed_experiment_leaves_no_kernel_and_no_copy(study):
    settings = ("--set-param", "recipe.epochs=500", "--set-param", "recipe.interval=9")
    toy.dvc(study, "exp", "run", "--queue", "--name", "long", *settings, "dense@dense-0")
    start_workers(study, jobs=1)
    copies = study / ".dvc/tmp/exps"
    wait_for(lambda: list(copies.glob("tmp*/.scratch/*.ckpt")))
    toy.dvc(study, "queue", "kill", "long")
    assert toy.gone(study)
    assert not list(copies.glob("tmp*"))
    assert states(study, until={"Success", "Failed"})["long"] == "Failed"
