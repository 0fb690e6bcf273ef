"""Methods against each other and against dense, image by image."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from svite.report.paired import interval
from svite.study import DENSE, Grid, key


def compare(correct: Mapping[str, Iterable[bool]], grid: Grid) -> list[dict[str, Any]]:
    """The paired interval of every sparse method of the grid against dense, and against SViTE at the same density.

    `correct` says of each run, by key, which test images it got right.
    """

    def right(method: str, density: float) -> np.ndarray:
        return np.stack([np.asarray(correct[key(method, density, seed)]) for seed in grid.seeds])

    rows = []
    for density in grid.densities:
        for method in grid.methods:
            references = [DENSE] + ["svite"] * ("svite" in grid.methods and method != "svite")
            for against in references:
                found = interval(right(method, density), right(against, density))
                named = dict(zip(("difference", "low", "high"), (round(points, 4) for points in found), strict=True))
                rows.append({"density": density, "method": method, "against": against, **named})
    return rows
