"""A tiny DVC project with the real study's params.yaml: a matrix of runs that take a nap."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from svite.pipeline.chores import git
from svite.pipeline.repro import dvc_environment

ROOT = Path(__file__).parents[1]

STAGES = """
stages:
  upper:
    cmd: python work.py upper
    deps: [data, work.py]
    outs: [out/upper]
  run:
    meta: {seconds: 5}
    matrix: {seed: '${seeds}'}
    cmd: python work.py run-${item.seed}
    deps: [out/upper, work.py]
    params: [recipe.lr]
    outs:
      - out/run-${item.seed}
      - metrics/run-${item.seed}.json: {cache: false}
  total:
    cmd: python work.py total
    deps: [metrics, work.py]
    params: [seeds, densities]
    outs: [out/total]
metrics: [metrics]
"""
WORK = """
import json, os, pathlib, sys, time
from svite.pipeline.notebooks import read_yaml
from svite.pipeline.orphans import die_with_parent
die_with_parent()
name, nap = sys.argv[1], float(os.environ.get("NAP", 0))
with open("ran.txt", "a") as file:
    print(name, file=file)
for epoch in range(3):
    print(f"epoch {epoch + 1}/3 of {name}", flush=True)
    time.sleep(nap if "run" in name else 0)
if name == os.environ.get("FAIL"):
    sys.exit("svite: this run was asked to fail.")
pathlib.Path("out").mkdir(exist_ok=True)
pathlib.Path("metrics").mkdir(exist_ok=True)
seeds = read_yaml(pathlib.Path("params.yaml"))["seeds"]
pathlib.Path("out", name).write_text(f"{name} {seeds if name == 'total' else ''}")
if "run" in name:
    pathlib.Path("metrics", f"{name}.json").write_text(json.dumps({"top1": len(name)}))
"""


def commit(place: Path) -> None:
    git("add", "--all", cwd=place)
    me = ("-c", "user.name=toy", "-c", "user.email=toy@localhost")
    git(*me, "commit", "--quiet", "--message", "toy", cwd=place)


def make(place: Path) -> None:
    """The project, with its data in the bundled store and nothing run yet."""
    (place / ".dvc").mkdir(parents=True)
    for name in (".dvc/config", ".dvc/plots.html", ".dvc/.gitignore", ".dvcignore", "params.yaml", "runs.yaml"):
        shutil.copy(ROOT / name, place / name)
    (place / ".gitignore").write_text("/data/\n/out/\n/.scratch/\n/ran.txt\n")
    (place / "dvc.yaml").write_text(STAGES)
    (place / "work.py").write_text(WORK)
    (place / "data").mkdir()
    (place / "data/x").write_text("seven")
    git("init", "--quiet", cwd=place)
    dvc(place, "add", "--quiet", "data")
    with (place / "data.dvc").open("a") as file:
        file.write("  remote: bundled\n")
    dvc(place, "push", "--quiet", "data.dvc")
    commit(place)


def environment(**settings: str) -> dict[str, str]:
    return dvc_environment() | {"PYTHONPATH": str(ROOT)} | settings


def dvc(place: Path, *arguments: str) -> str:
    """What `dvc ...` prints in that project, its stages run by that project's svite if it has one."""
    command = [sys.executable, "-m", "dvc", *arguments]
    home = place if (place / "svite").exists() else ROOT
    pipes = {"capture_output": True, "text": True, "timeout": 900}
    done = subprocess.run(command, cwd=place, env=environment(PYTHONPATH=str(home)), **pipes)
    assert done.returncode == 0, done.stderr
    return done.stdout


def start(place: Path, *arguments: str, **settings: str) -> subprocess.Popen:
    """`svite ...` in that project, its output in one pipe."""
    command = [sys.executable, "-m", "svite", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    env = environment(**settings)
    return subprocess.Popen(command, cwd=place, env=env, start_new_session=True, **pipes)


def svite(place: Path, *arguments: str, **settings: str) -> tuple[int, str]:
    with start(place, *arguments, **settings) as process:
        out, _ = process.communicate(timeout=900)
    return process.returncode, out


def ran(place: Path) -> list[str]:
    """The stages that really ran since the last call."""
    file = place / "ran.txt"
    names = file.read_text().split() if file.exists() else []
    file.unlink(missing_ok=True)
    return sorted(names)


def left_over(place: Path) -> list[str]:
    """Processes that still work in the project."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(folder / "cwd").startswith(str(place)):
                found.append((folder / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


def gone(place: Path, patience: float = 60) -> bool:
    """Nothing works there any more."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        if not left_over(place):
            return True
        time.sleep(0.05)
    return False
