"""Around the pipeline: the study at toy size, the figures alone, the drift between machines."""

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from svite.pipeline import copies, notebooks, plan
from svite.pipeline.locks import PipelineError, alone
from svite.pipeline.repro import dvc_environment, planned

SMOKE = Path(".scratch/smoke")
IDLE = "Everything is up to date."


def git(*arguments: str, cwd: str | Path = ".") -> str:
    """What a git command prints."""
    done = subprocess.run(["git", *arguments], cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        raise PipelineError(f"`git {' '.join(arguments)}` failed: {done.stderr.strip()}")
    return done.stdout


# ---- smoke --------------------------------------------------------------------------------------


def toy_params(params: dict) -> dict:
    """The same study at toy size: every setting, at two densities or one of its own, and one seed, very briefly."""
    brief = {"epochs": 2, "images": 256, "interval": 2}
    ends = [*dict.fromkeys([params["densities"][0], params["densities"][-1]])]
    small = params | {"recipe": params["recipe"] | brief, "seeds": params["seeds"][:1], "densities": ends}
    settings = [
        setting
        | ({"densities": setting["densities"][-1:]} if "densities" in setting else {})
        | ({"recipe": setting["recipe"] | brief} if "recipe" in setting else {})
        for setting in params["settings"]
    ]
    return small | {"settings": settings}


def copy_tree(target: Path) -> None:
    """This working tree as git sees it, uncommitted work included, as a repository of its own."""
    shutil.rmtree(target, ignore_errors=True)
    names = git("ls-files", "--cached", "--others", "--exclude-standard", "-z").split("\0")
    for name in filter(os.path.isfile, names):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(name, target / name)
    git("init", "--quiet", cwd=target)
    git("add", "--all", cwd=target)
    me = ("-c", "user.name=svite", "-c", "user.email=svite@localhost")
    git(*me, "commit", "--quiet", "--message", "A scratch copy", cwd=target)


def toy_copy(target: Path) -> None:
    """A scratch copy of the working tree whose params.yaml is the toy study's, without the study's results."""
    from ruamel.yaml import YAML

    copy_tree(target)
    (target / "dvc.lock").unlink(missing_ok=True)
    for other in target.glob("studies/*/dvc.*"):  # DVC would speak of them too
        other.unlink()
    for results in ("metrics", "curves", "arrays", "reports/figures", "reports/tables"):
        shutil.rmtree(target / results, ignore_errors=True)
    params = target / "params.yaml"
    YAML().dump(toy_params(notebooks.read_yaml(params)), params)
    with contextlib.chdir(target):
        plan.write_plan()


def smoke(jobs: int, twice: bool) -> None:
    """Run the whole pipeline at toy size in .scratch/smoke; `twice`: again, for nothing to do."""
    with alone(SMOKE.with_suffix(".lock")):
        toy_copy(SMOKE)
        if repro_in(SMOKE, jobs).returncode:
            raise PipelineError(f"The toy study failed; what it left lies in {SMOKE}.")
        if twice and IDLE not in (said := repro_in(SMOKE, jobs, stdout=subprocess.PIPE).stdout):
            raise PipelineError(f"The second run should find nothing to do, but: {said}")


def repro_in(place: Path, jobs: int, **options: Any) -> subprocess.CompletedProcess[str]:
    """`svite repro` of another working tree, with that tree's svite."""
    command = [sys.executable, "-m", "svite", "repro", "--jobs", str(jobs)]
    environment = os.environ | {"PYTHONPATH": str(place.absolute())}
    return subprocess.run(command, cwd=place, env=environment, text=True, **options)


# ---- figures ------------------------------------------------------------------------------------


def figures() -> None:
    """Run the stages `figures` and `report` as dvc.yaml has them, without DVC or data."""
    planned()
    copies.clean()
    stages = notebooks.read_yaml(Path("dvc.yaml"))["stages"]
    for stage in ("figures", "report"):
        command = shlex.split(stages[stage]["cmd"])
        if subprocess.run(command, env=dvc_environment()).returncode:
            raise PipelineError(f"The stage '{stage}' failed.")
    readme()
    print("Figures: reports/figures/  The report: reports/report.pdf, reports/report.html")


def readme() -> None:
    """Put the table of results into the study's README, where there is one."""
    if not Path("README.md").exists():
        return
    from svite.params.study import load
    from svite.report import results, tables

    tables.update_readme(results.Results.read(study=load()))


# ---- drift --------------------------------------------------------------------------------------


def drift() -> None:
    """Say how far this working tree's results lie from the committed ones."""
    if git("diff", "HEAD", "--name-only", "--", "params.yaml").strip():
        print("params.yaml differs from the commit, so its results are not compared.")
        return
    committed = git("ls-tree", "-r", "--name-only", "HEAD", "--", "metrics").split()
    paths = [path for path in committed if path.endswith(".json")]
    rows = moved([(p, git("show", f"HEAD:./{p}"), read(p)) for p in paths])
    drifted = [row for row in rows if row[2]]
    if not paths:
        print("No results are committed yet.")
    elif not drifted:
        print(f"Drift: none; all {len(paths)} files of results equal the committed ones.")
    else:
        print("Drift of this run from the committed results:")
        print(f"  {'quantity':<22}{'values':>8}{'moved':>8}{'largest':>11}  where")
    for name, total, count, largest, where in drifted:
        print(f"  {name:<22}{total:>8}{count:>8}{largest:>+11.4g}  {where}")


def read(path: str) -> str:
    """The file's text; nothing where the working tree has dropped it."""
    return Path(path).read_text() if Path(path).exists() else "{}"


def moved(files: list[tuple[str, str, str]]) -> list[tuple[str, int, int, float, str]]:
    """One row a quantity: its name, how many values, how many moved, the largest move, where.

    >>> moved([("a.json", '{"k": {"top1": 90, "n": 5}}', '{"k": {"top1": 91.5, "n": 5}}')])
    [('n', 1, 0, 0.0, ''), ('top1', 1, 1, 1.5, 'a.json: k.top1')]
    """
    moves: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for path, before, now in files:
        old, new = dict(numbers(json.loads(before))), dict(numbers(json.loads(now)))
        for place in old.keys() & new.keys():
            moves[place.split(".")[-1]].append((new[place] - old[place], f"{path}: {place}"))
    rows = []
    for name, changes in sorted(moves.items()):
        largest, where = max(changes, key=lambda change: (abs(change[0]), change[1]))
        count = sum(change != 0 for change, _ in changes)
        rows.append((name, len(changes), count, float(largest), where if largest else ""))
    return rows


def numbers(value: Any, place: str = "") -> Iterator[tuple[str, float]]:
    """Every number of a JSON document with its place."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for name, inner in items:
            yield from numbers(inner, f"{place}.{name}".lstrip("."))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield place, value
