"""Methods against each other and against dense, image by image."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from svite.params.study import DENSE, Grid, key
from svite.report.paired import interval


def compare(correct: Mapping[str, Iterable[bool]], grid: Grid) -> list[dict[str, Any]]:
    """The paired interval of every sparse method against dense, and against SViTE at the same density of weights.

    `correct` says of each run, by key, which test images it got right.
    """

    def right(method: str, density: float) -> np.ndarray:
        return np.stack([np.asarray(correct[key(method, density, seed)]) for seed in grid.seeds])

    rows = []
    for method, density in sorted(grid.settings, key=lambda setting: -setting[1]):
        rivals = {"svite"} & set(grid.methods) if method in grid.methods else set()
        for against in [DENSE, *(rivals - {method})]:
            found = interval(right(method, density), right(against, density))
            named = dict(zip(("difference", "low", "high"), (round(points, 4) for points in found), strict=True))
            rows.append({"density": density, "method": method, "against": against, **named})
    return rows
