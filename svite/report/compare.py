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
            found = _between(ours, theirs, correct) if baseline != label != against else None
            if found:
                rows.append((density, label, against, *(round(points, 4) for points in found)))
    return pd.DataFrame(rows, columns=COLUMNS)


def leaders(runs: pd.DataFrame, correct: Mapping[str, np.ndarray]) -> dict[float, str]:
    """At each density the setting with the highest mean, where its interval against the next one lies above zero."""
    found = {}
    for density, group in runs.groupby("density"):
        first, *others = group.groupby("label")["top1"].mean().sort_values(ascending=False).index[:2]
        keys = group.set_index("seed").groupby("label")["key"]
        gaps = [_between(keys.get_group(first), keys.get_group(other), correct) for other in others]
        if any(gap and gap[1] > 0 for gap in gaps):
            found[density] = first
    return found


def _between(
    ours: pd.Series, theirs: pd.Series, correct: Mapping[str, np.ndarray]
) -> tuple[float, float, float] | None:
    """The interval of one setting's runs, keys by seed, minus another's; None where they share no seed."""
    seeds = [seed for seed in ours.index if seed in theirs.index]
    sides = (np.stack([correct[side[seed]] for seed in seeds]) for side in (ours, theirs) if seeds)
    return interval(*sides) if seeds else None
