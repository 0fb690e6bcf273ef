"""The made-up study with parts taken away whole, measured, for the tests of costs and of what is drawn and said."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import synthetic_results
from synthetic_results import PARTS, write, write_measured

from svite.report import measured
from svite.report.results import Results

KEPT, SEEDS = (0.75, 0.5), (0, 1, 2)
GRID = {"methods": ("svite", "set", "gmp", "omp"), "densities": (0.6, 0.1), "structured": PARTS, "kept": KEPT}


def asked(**changes: object):
    """The study, with some of it changed."""
    return synthetic_results.study(**GRID | changes)


def unmeasured(folder: Path, **changes: object) -> Results:
    """A changed study, written to a folder, with nothing timed."""
    return Results.read(write(folder, asked(**changes)), asked(**changes))


def study(folder: Path, **changes: object) -> Results:
    """A changed study, written to a folder, with every model timed."""
    write_measured(folder, asked(**changes))
    return unmeasured(folder, **changes)


def of_study(results: Results, **changes: object) -> Results:
    """What a changed study leaves of one in the same folder."""
    return Results.read(results.folder, asked(**changes))


def timed(results: Results, *keys: str) -> dict[str, Any]:
    """The file of times of a study, with these models alone."""
    content = json.loads((results.folder / measured.LATENCY).read_text())
    return content | {"models": {key: content["models"][key] for key in keys}}


def put(path: Path, content: Mapping[str, Any]) -> None:
    """A file of measurements."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))
