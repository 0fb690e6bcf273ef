"""What settings that take whole parts away keep, cost and gain, in sentences that the numbers choose."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from svite.report import structure
from svite.report.costs import costs
from svite.report.measured import saved_of_deit
from svite.report.results import Results
from svite.report.style import percent
from svite.report.text import difference, listed, means, signed, span
from svite.report.tokens import brightness_kept, selection

BATCH = 64  # at which the sentences speak of time


def findings(results: Results) -> dict[str, Any]:
    """The facts and sentences of the report's section; only what was drawn where nothing is taken away whole."""
    labels, study = results.structured_labels, results.study
    facts = {"labels": labels, "figures": structure.drawable(results), "tokens": _tokens(results)}
    if not labels:
        return facts
    frame = costs(results)
    parted = frame[frame["label"].isin(labels)]
    return facts | {
        "kept": [percent(share) for share in kept(results)],
        "images": [int(images) for images in sorted(results.structured["images_charged"].unique())],
        "means": means(results.structured),
        "paired": _paired_rows(results, labels),
        "accuracy": " ".join(_against_baseline(results, labels, share) for share in kept(results)),
        "short": fastest(parted),
        "line": against_line(frame, labels, study.baseline, study.reference),
        "speed": speed(parted),
        "saved_of_deit": saved_of_deit(results.folder),
        "zeros": zeros(frame[frame["label"].isin(results.labels)]),
        "survivors": " ".join(survivors(results)),
    }


def kept(results: Results) -> list[float]:
    """The kept shares of the study, the largest first."""
    return sorted(results.structured["density"].unique(), reverse=True)


def _paired_rows(results: Results, labels: Iterable[str]) -> list[dict[str, Any]]:
    """Each setting's differences from the baseline, one cell a kept share."""
    baseline = results.study.baseline
    return [
        {
            "label": label,
            "color": results.looks[label].color,
            "cells": [difference(results.gap(label, baseline, share)) for share in kept(results)],
        }
        for label in labels
        if (results.paired["label"] == label).any()
    ]


def _against_baseline(results: Results, labels: Iterable[str], share: float) -> str:
    gaps = {label: results.gap(label, results.study.baseline, share) for label in labels}
    found = {label: (gap.difference, gap.low, gap.high) for label, gap in gaps.items() if gap}
    told = against_baseline(found, results.study.baseline)
    return f"With {percent(share)} kept, {told}." if told else ""


def against_baseline(gaps: dict[str, tuple[float, float, float]], baseline: str) -> str:
    """Who is behind the baseline, and who ahead of it, given each difference in points and its interval.

    >>> against_baseline({"A": (-0.4, -0.9, 0.1), "B": (-1.2, -1.8, -0.6)}, "Dense")
    'no difference from Dense is resolved for A (−0.40); B (−1.20) is less accurate than Dense'
    """
    states: dict[str, list[str]] = {"level": [], "behind": [], "ahead": []}
    for label, (points, low, high) in gaps.items():
        states["ahead" if low > 0 else "behind" if high < 0 else "level"].append(f"{label} ({signed(points)})")
    return "; ".join(_says(state, listed(who), len(who), baseline) for state, who in states.items() if who)


def _says(state: str, who: str, number: int, baseline: str) -> str:
    if state == "level":
        return f"no difference from {baseline} is resolved for {who}"
    return f"{who} {'is' if number == 1 else 'are'} {'more' if state == 'ahead' else 'less'} accurate than {baseline}"


def against_line(frame: pd.DataFrame, labels: Iterable[str], baseline: str, reference: str | None) -> str:
    """Means above or below the line through those of the reference and the baseline, at equal non-zero parameters."""
    line = frame[frame["label"].isin([baseline, reference])].sort_values("nonzero_share")
    points = frame[frame["label"].isin(labels) & (frame["nonzero_share"] >= line["nonzero_share"].min())]
    if reference is None or points.empty:
        return ""
    gaps = points["top1"] - np.interp(points["nonzero_share"], line["nonzero_share"], line["top1"])
    sides = [
        f"{len(side)} {'lies' if len(side) == 1 else 'lie'} {where}, by up to {side.max():.1f} points"
        for where, side in (("below", -gaps[gaps < 0]), ("on it or above", gaps[gaps >= 0]))
        if len(side)
    ]
    return (
        f"Measured by the line through {baseline} and the means of {reference}, of {len(points)} means with whole "
        f"parts taken away {', and '.join(sides)}, at as many non-zero parameters."
    )


def fastest(frame: pd.DataFrame) -> str:
    """The model with parts taken away that was measured to be the fastest, and its accuracy."""
    timed = frame.dropna(subset=[f"speedup_{BATCH}"])
    if timed.empty:
        return ""
    best = timed.loc[timed[f"speedup_{BATCH}"].idxmax()]
    interval = span(best[f"low_{BATCH}"], best[f"high_{BATCH}"])
    return (
        f"Of the settings that take away whole parts, {best['label']} with {percent(best['kept'])} kept is "
        f"the fastest that was measured: {best[f'speedup_{BATCH}']:.2f} times the speed of dense at batch {BATCH} "
        f"(95 % interval {interval}), with {best['top1']:.1f} % top-1."
    )


def speed(frame: pd.DataFrame) -> str:
    """How fast models with parts taken away were measured to be, and how much of the operations saved the clock saw."""
    times, saved = _range(frame[f"speedup_{BATCH}"]), _range(frame[f"saved_{BATCH}"])
    told = f"At batch {BATCH} the models with whole parts taken away run at {times} times the speed of dense"
    seen = f"; time saved over operations saved is {saved}" if saved else ""
    return f"{told}{seen}." if times else ""


def zeros(frame: pd.DataFrame) -> str:
    """How fast models with zeros among their weights were measured to be: zeros are multiplied like any number."""
    times = _range(frame[f"speedup_{BATCH}"])
    return f"Models of full size with zeros as weights run at {times} times the speed of dense." if times else ""


def _range(values: pd.Series) -> str:
    """The range of what was measured; nothing where nothing was."""
    measured = values.dropna()
    return span(measured.min(), measured.max()) if len(measured) else ""


def survivors(results: Results) -> list[str]:
    """For each setting of heads and neurons, which layers keep the most and the fewest, where it keeps the least."""
    if "survivors" not in structure.drawable(results):
        return []
    frame = structure.alive(results)
    told = []
    for label, layers in frame.groupby("label", sort=False):
        share = layers["target_density"].min()
        left = layers[layers["target_density"] == share].groupby(["part", "layer"])["achieved"].mean()
        parts = [_layers(left[part], part) for part in structure.PARTS if part in left]
        told.append(f"With {percent(share)} kept, {label} leaves {', and '.join(parts)}.")
    return told


def _layers(left: pd.Series, part: str) -> str:
    """The layers with the most and the fewest, or that all have the same."""
    most, fewest = percent(round(left.max(), 2)), percent(round(left.min(), 2))
    if most == fewest:
        return f"{most} of the {part} in each layer"
    return f"{most} of the {part} in layer {left.idxmax()} and {fewest} in layer {left.idxmin()}"


def _tokens(results: Results) -> str:
    """What the kept patches hold: more than their share, if the selector has learned which are bright."""
    found = selection(results)
    if found is None:
        return ""
    held, share = brightness_kept(results.test["samples"], found.kept), float(found.kept.mean())
    return (
        f"The {percent(round(share, 2))} of the patches that stay hold {percent(round(held, 2))} of these images' "
        "brightness."
    )
