"""Settings against each other, image by image."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from svite.report.paired import interval

COLUMNS = ["density", "label", "against", "difference", "low", "high"]


def compare(
    runs: pd.DataFrame, correct: Mapping[str, np.ndarray], baseline: str, reference: str | None
) -> pd.DataFrame:
    """The paired interval of every setting against the baseline, and of single weights against the reference too, at
    the same density.

    `correct` says of each run, by key, which test images it got right. What a setting shares no seed with is left out.
    """
    keys = {name: group.set_index("seed")["key"] for name, group in runs.groupby(["label", "density"], sort=False)}
    dense = next(found for (label, _), found in keys.items() if label == baseline)
    group = runs.drop_duplicates("label").set_index("label")["group"]
    rows = []
    for (label, density), ours in sorted(keys.items(), key=lambda item: -item[0][1]):
        rivals = {baseline: dense}
        if group[label] == "weights" and (reference, density) in keys:
            rivals |= {reference: keys[reference, density]}
        for against, theirs in rivals.items():
            seeds = [seed for seed in ours.index if seed in theirs.index]
            if seeds and baseline != label != against:
                found = interval(*(np.stack([correct[side[seed]] for seed in seeds]) for side in (ours, theirs)))
                rows.append((density, label, against, *(round(points, 4) for points in found)))
    return pd.DataFrame(rows, columns=COLUMNS)
