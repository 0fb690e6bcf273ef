"""The made-up study with its structured methods, measured, for the tests of costs and of what is drawn and said."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from synthetic_results import STRUCTURED, write, write_measured

from svite.report import measured
from svite.report.results import Results

GRID = STRUCTURED | {"densities": [0.6, 0.1], "pretrained": ["omp"]}


def unmeasured(folder: Path, **changes: object) -> Results:
    """The study of a changed grid, written to a folder, with nothing timed."""
    grid = GRID | changes
    return Results.read(write(folder, grid), grid=grid)


def study(folder: Path, **changes: object) -> Results:
    """The study of a changed grid, written to a folder, with every model timed."""
    write_measured(folder, GRID | changes)
    return unmeasured(folder, **changes)


def of_grid(results: Results, **changes: object) -> Results:
    """What a changed grid leaves of a study in the same folder."""
    return Results.read(results.folder, grid=GRID | changes)


def timed(results: Results, *keys: str) -> dict[str, Any]:
    """The file of times of a study, with these models alone."""
    content = json.loads((results.folder / measured.LATENCY).read_text())
    return content | {"models": {key: content["models"][key] for key in keys}}


def put(path: Path, content: Mapping[str, Any]) -> None:
    """A file of measurements."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))
