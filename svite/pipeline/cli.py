"""The `svite` command: the whole study, its toy version, its figures, its drift."""

import argparse
import os
import signal
import sys
from types import FrameType

from svite.params.paths import repository
from svite.params.recipe import near
from svite.pipeline import chores, training
from svite.pipeline import repro as pipeline
from svite.pipeline.copies import NotebookError
from svite.pipeline.locks import PipelineError


def main() -> None:
    """Parse the command line, run the command, end with one sentence where it can't."""
    arguments = parser().parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job has none
    for sign in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(sign, interrupt)
    try:
        enter(getattr(arguments, "study", None))
        COMMANDS[arguments.command](arguments)
    except (PipelineError, NotebookError, OSError) as error:
        sys.exit(f"svite: {error}")
    except KeyboardInterrupt:
        sys.exit("\nStopped; the same command goes on from here.")


def interrupt(*_: int | FrameType | None) -> None:
    """Let every way of being asked to end be Ctrl-C."""
    signal.raise_signal(signal.SIGINT)


def enter(study: str | None) -> None:
    """Change to the folder of a study by its name; where there is none, stay."""
    if study is None:
        return
    studies = repository() / "studies"
    found = sorted(path.parent.name for path in studies.glob("*/params.yaml"))
    if study not in found:
        raise PipelineError(f"There is no {studies / study / 'params.yaml'}; {near(study, found, 'studies')}.")
    os.chdir(studies / study)


def repro(arguments: argparse.Namespace) -> None:
    """Run what changed, compare with the committed results, say where the report lies."""
    if not pipeline.repro(arguments.jobs):
        print(chores.IDLE)
    else:
        chores.readme()
        chores.drift()
    print("The report: reports/report.pdf, reports/report.html")


COMMANDS = {
    "repro": repro,
    "plan": lambda arguments: pipeline.planned(),
    "smoke": lambda arguments: chores.smoke(arguments.jobs, arguments.twice),
    "figures": lambda arguments: chores.figures(),
    "drift": lambda arguments: chores.drift(),
    "train": lambda arguments: training.run(arguments),
}


def parser() -> argparse.ArgumentParser:
    """What can be asked for."""
    top = argparse.ArgumentParser(prog="svite", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    whole = commands.add_parser("repro", help="the study: run what changed")
    smoke = commands.add_parser("smoke", help="the whole pipeline at toy size, in a scratch copy")
    for command in (whole, smoke):
        command.add_argument("--jobs", type=training.positive, default=1, help="stages at a time (1)")
    smoke.add_argument("--twice", action="store_true", help="and again: it must find nothing to do")
    figures = commands.add_parser("figures", help="figures, tables and report again, from results in git")
    commands.add_parser(
        "train", help="one model by itself, on one process or many", parents=[training.parser()], add_help=False
    )
    drift = commands.add_parser("drift", help="committed results against those of this working tree")
    planning = commands.add_parser("plan", help="runs.yaml anew from params.yaml, and nothing more")
    for command in (whole, figures, drift, planning):
        command.add_argument("--study", help="the study in studies/STUDY; by default that of this folder")
    return top
