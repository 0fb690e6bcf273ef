"""The study as a DVC pipeline: `repro` runs what changed, several stages at a time.

DVC decides what is stale; this module only orders the work. A round asks DVC which stages changed,
runs those that wait for no other, and asks again: so a change that changes no output (saving a
notebook, say) costs one stage, and a new value in the grid costs its own runs.
"""

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from svite.params.study import Study, load
from svite.pipeline import leftovers, locks, plan, warm
from svite.pipeline.locks import PipelineError
from svite.pipeline.notebooks import read_yaml
from svite.pipeline.orphans import die_with_parent

EPOCH = re.compile(r"epoch +(\d+)/(\d+)")
SHOWN = 5  # stages that are named in one line
SETTLED = 60.0  # seconds of work after which the pace of this machine counts more than what dvc.yaml says


# ---- asking DVC ---------------------------------------------------------------------------------


def dvc_environment() -> dict[str, str]:
    """Stages call `python`: let it be this one, whether or not its environment is active.

    And let the shell be bash where there is one: it becomes the command, where others stand between
    DVC and the command, which then doesn't notice that DVC was killed.
    """
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")])
    return os.environ | {"PATH": path, "SHELL": shutil.which("bash") or "/bin/sh"}


def dvc(*arguments: str) -> str:
    """What a short DVC command prints."""
    command = [sys.executable, "-m", "dvc", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=dvc_environment())
    if done.returncode:
        raise PipelineError(f"`dvc {' '.join(arguments)}` failed: {done.stderr.strip()}")
    return done.stdout


def changed() -> dict[str, list]:
    """The stages of this study that DVC would run now, with the reason; the record of its data, if they are tracked."""
    return json.loads(dvc("status", "--json", "dvc.yaml", *tracked()))


def tracked() -> list[str]:
    """The file by which DVC knows the study's data, where there is one."""
    record = f"{read_yaml(Path('params.yaml'))['data']}.dvc"
    return [record] * Path(record).is_file()


def edges() -> list[tuple[str, str]]:
    """Which stage feeds which."""
    return re.findall(r'^"([^"]+)" -> "([^"]+)"', dvc("dag", "--dot", "dvc.yaml"), re.MULTILINE)


def names() -> set[str]:
    """The stages that there are."""
    return set(dvc("stage", "list", "--name-only", "dvc.yaml").split())


def after(stages: set[str], arrows: list[tuple[str, str]]) -> set[str]:
    """The stages that come after any of these.

    >>> sorted(after({"a"}, [("a", "b"), ("b", "c"), ("x", "c")]))
    ['b', 'c']
    """
    found: set[str] = set()
    while new := {b for a, b in arrows if a in stages | found} - found:
        found |= new
    return found


def seconds() -> dict[str, float]:
    """How long a run of each stage about takes; dvc.yaml says so in `meta: {seconds: 40}`."""
    stages = read_yaml(Path("dvc.yaml"))["stages"]
    return {name: stage.get("do", stage).get("meta", {}).get("seconds", 1) for name, stage in stages.items()}


# ---- running stages -----------------------------------------------------------------------------


class Remaining:
    """What is left to do, in seconds of work, corrected by how long finished stages took."""

    def __init__(self, jobs: int) -> None:
        self.guesses, self.jobs, self.finished = seconds(), jobs, 0
        self.left: dict[str, float] = {}  # stage -> the fraction of it that is still to do
        self.expected = self.spent = SETTLED

    def guess(self, stage: str) -> float:
        """Seconds that the stage should take."""
        return self.guesses.get(stage.split("@")[0], 1)

    def plan(self, stages: set[str]) -> None:
        """These are the stages that are left, as DVC sees it now."""
        self.left = dict.fromkeys(stages, 1.0)

    def line(self, stage: str, text: str) -> None:
        """Show a line of a stage if it is a progress line, and count it."""
        if match := EPOCH.match(text):
            self.left[stage] = 1 - int(match[1]) / int(match[2])
            print(f"  {stage:<24} {text}", flush=True)

    def done(self, stage: str, spent: float) -> None:
        """Show that a stage is done, and what that leaves."""
        del self.left[stage]
        self.finished += 1
        self.expected, self.spent = self.expected + self.guess(stage), self.spent + spent
        total = self.finished + len(self.left)
        print(f"[{self.finished}/{total}] {stage} took {spent:.0f} s; {self}", flush=True)

    def __str__(self) -> str:
        work = sum(self.guess(stage) * left for stage, left in self.left.items())
        left = work * self.spent / self.expected / self.jobs
        return f"about {left / 60:.0f} min left" if left > 90 else f"about {left:.0f} s left"


async def run_stage(stage: str, slots: asyncio.Semaphore, progress: Remaining) -> None:
    """`dvc repro` of one stage alone; its process group ends with ours, whatever happens."""
    async with slots:
        start, tail = time.monotonic(), []
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", stage),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=2**24,
            env=dvc_environment(),
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        try:
            async for raw in process.stdout:
                text = raw.decode(errors="replace").rstrip()
                progress.line(stage, text)
                tail = [*tail[-60:], text]
            code = await process.wait()
        finally:
            if process.returncode is None:
                await end(process)
        if code:
            raise PipelineError(_failure(stage, tail))
        locks.keep_record()
        progress.done(stage, time.monotonic() - start)


async def end(process: asyncio.subprocess.Process) -> None:
    """Interrupt the stage, so that DVC tidies up; kill it where that takes too long."""
    for sign, patience in ((signal.SIGINT, 10), (signal.SIGKILL, None)):
        os.killpg(process.pid, sign)
        try:
            async with asyncio.timeout(patience):
                await process.wait()
                return
        except TimeoutError:
            continue


def _failure(stage: str, tail: list[str]) -> str:
    """The stage's own sentence if it has one, else all that it said last."""
    own = [line.removeprefix("svite: ") for line in tail if line.startswith("svite: ")]
    return f"{stage}: {own[-1]}" if own else "\n".join([f"{stage} failed:", *tail])


async def run_round(stages: set[str], jobs: int, progress: Remaining) -> None:
    """Run these stages, which don't feed each other, longest first; the first failure ends all."""
    slots = asyncio.Semaphore(jobs)
    try:
        async with asyncio.TaskGroup() as group:
            for stage in sorted(stages, key=lambda stage: (-progress.guess(stage), stage)):
                group.create_task(run_stage(stage, slots, progress))
    except* PipelineError as errors:
        failure = errors.exceptions[0]
    else:
        return
    raise failure


def repro(jobs: int) -> bool:
    """Bring the study up to date, `jobs` stages at a time; False if there was nothing to do."""
    with locks.alone(locks.pipeline()):
        study = planned()
        locks.forget_the_dead()
        if locks.is_cut_short():
            locks.mend_record()
        if dropped := leftovers.remove(names(), {run.key for run in study.runs}):
            more = f" and {len(dropped) - SHOWN} more" if len(dropped) > SHOWN else ""
            print(
                f"Removed, for the study has them no more: the results of {', '.join(dropped[:SHOWN])}{more}.",
                flush=True,
            )
        with warm.kernels():
            return bool(run_rounds(jobs) or dropped)


def planned() -> Study:
    """The study, and `runs.yaml` written for it."""
    try:
        study = load()
        if plan.write_plan():
            print(f"runs.yaml now has the {len(study.runs)} runs of params.yaml.", flush=True)
    except (ValueError, FileNotFoundError) as error:
        raise PipelineError(str(error)) from None
    return study


def run_rounds(jobs: int) -> set[str]:
    """Round after round until DVC has nothing left to run; the stages that ran."""
    arrows: list[tuple[str, str]] = []
    ran: set[str] = set()
    progress = Remaining(jobs)
    while stale := stale_stages() - ran:
        arrows = arrows or edges()
        waiting = after(stale, arrows)
        progress.plan(stale | waiting)
        if not ran:
            print(f"Up to {len(stale | waiting)} stages to run: {progress}.", flush=True)
        asyncio.run(run_round(stale - waiting, jobs, progress))
        ran |= stale - waiting
    return ran


def stale_stages() -> set[str]:
    """The stages that DVC would run; tracked data that is missing is fetched before."""
    try:
        stale = changed()
    except PipelineError:  # a dvc.lock that DVC can't read, if it can be that
        locks.mend_record()
        stale = changed()
    records = {name: reasons for name, reasons in stale.items() if name.endswith(".dvc")}
    for name, reasons in records.items():
        if "modified" in str(reasons):
            raise PipelineError(
                f"The data differ from what {name} records: `dvc checkout --force {name}` restores "
                f"them, `dvc commit {name}` accepts the change."
            )
    if records:
        dvc("pull", *records)
        stale = changed()
    return set(stale) - set(records)
