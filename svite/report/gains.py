"""What structured methods keep, cost and gain, in sentences that the numbers choose."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from svite.report import structure
from svite.report.costs import costs
from svite.report.measured import saved_of_deit
from svite.report.results import Results
from svite.report.style import look, percent
from svite.report.text import difference, listed, signed, span
from svite.report.tokens import ink_kept

BATCH = 64  # at which the sentences speak of time


def findings(results: Results) -> dict[str, Any]:
    """The facts and sentences of the report's section; nothing but an empty list where there are no such methods."""
    methods = list(results.structured["method"].unique())
    if not methods:
        return {"methods": []}
    frame = costs(results)
    return {
        "methods": methods,
        "kept": [percent(share) for share in kept(results)],
        "images": [int(images) for images in sorted(results.structured["images_charged"].unique())],
        "figures": structure.drawable(results),
        "paired": _paired_rows(results, methods),
        "accuracy": " ".join(_against_dense(results, methods, share) for share in kept(results)),
        "short": fastest(frame[frame["method"].isin(methods)]),
        "line": against_line(frame, methods),
        "speed": speed(frame[frame["method"].isin(methods)]),
        "saved_of_deit": saved_of_deit(results.folder),
        "zeros": zeros(frame[frame["method"].isin(results.methods)]),
        "survivors": " ".join(survivors(results)),
        "tokens": _tokens(results),
    }


def kept(results: Results) -> list[float]:
    """The kept shares of the grid, the largest first."""
    return sorted(results.structured["density"].unique(), reverse=True)


def _paired_rows(results: Results, methods: Iterable[str]) -> list[dict[str, Any]]:
    """Each method's differences from dense, one cell a kept share."""
    return [
        {
            "method": look(method).label,
            "color": look(method).color,
            "cells": [difference(results.gap(method, "dense", share)) for share in kept(results)],
        }
        for method in methods
    ]


def _against_dense(results: Results, methods: Iterable[str], share: float) -> str:
    gaps = {look(method).label: results.gap(method, "dense", share) for method in methods}
    told = against_dense({label: (gap.difference, gap.low, gap.high) for label, gap in gaps.items() if gap})
    return f"With {percent(share)} kept, {told}." if told else ""


def against_dense(gaps: dict[str, tuple[float, float, float]]) -> str:
    """Who is behind dense, level with it or ahead of it, given each difference in points and its interval.

    >>> against_dense({"S2ViTE": (-0.4, -0.9, 0.1), "VTP": (-1.2, -1.8, -0.6)})
    'S2ViTE (−0.40) cannot be told from dense; VTP (−1.20) is less accurate than dense'
    """
    states: dict[str, list[str]] = {"level": [], "behind": [], "ahead": []}
    for label, (points, low, high) in gaps.items():
        states["ahead" if low > 0 else "behind" if high < 0 else "level"].append(f"{label} ({signed(points)})")
    return "; ".join(f"{listed(labels)} {_says(state, labels)} dense" for state, labels in states.items() if labels)


def _says(state: str, labels: list[str]) -> str:
    verb = "are" if len(labels) > 1 else "is"
    return {
        "level": "cannot be told from",
        "behind": f"{verb} less accurate than",
        "ahead": f"{verb} more accurate than",
    }[state]


def against_line(frame: pd.DataFrame, methods: Iterable[str]) -> str:
    """Structured settings above or below the line through SViTE's means and dense, at equal non-zero parameters."""
    line = frame[frame["method"].isin(["dense", "svite"])].sort_values("nonzero_share")
    points = frame[frame["method"].isin(methods) & (frame["nonzero_share"] >= line["nonzero_share"].min())]
    if not (line["method"] == "svite").any() or points.empty:
        return ""
    gaps = points["top1"] - np.interp(points["nonzero_share"], line["nonzero_share"], line["top1"])
    sides = [
        f"{len(side)} {'lies' if len(side) == 1 else 'lie'} {where}, by up to {side.max():.1f} points"
        for where, side in (("below", -gaps[gaps < 0]), ("on it or above", gaps[gaps >= 0]))
        if len(side)
    ]
    return (
        f"Measured by the line through dense and the means of SViTE, of {len(points)} structured settings "
        f"{', and '.join(sides)}, at as many non-zero parameters."
    )


def fastest(frame: pd.DataFrame) -> str:
    """The structured model that was measured to be the fastest, and its accuracy."""
    timed = frame.dropna(subset=[f"speedup_{BATCH}"])
    if timed.empty:
        return ""
    best = timed.loc[timed[f"speedup_{BATCH}"].idxmax()]
    interval = span(best[f"low_{BATCH}"], best[f"high_{BATCH}"])
    return (
        f"Of the methods that take away whole parts, {look(best['method']).label} with {percent(best['kept'])} kept is "
        f"the fastest that was measured: {best[f'speedup_{BATCH}']:.2f} times the speed of dense at batch {BATCH} "
        f"(95 % interval {interval}), with {best['top1']:.1f} % top-1."
    )


def speed(frame: pd.DataFrame) -> str:
    """How fast the structured models were measured to be, and how much of the operations saved the clock saw."""
    times, saved = _range(frame[f"speedup_{BATCH}"]), _range(frame[f"saved_{BATCH}"])
    told = f"At batch {BATCH} the structured models of this study run at {times} times the speed of dense"
    seen = f"; time saved over operations saved is {saved}" if saved else ""
    return f"{told}{seen}." if times else ""


def zeros(frame: pd.DataFrame) -> str:
    """How fast models with single dead weights were measured to be: zeros are multiplied like any number."""
    times = _range(frame[f"speedup_{BATCH}"])
    return f"Models with single dead weights run at {times} times the speed of dense." if times else ""


def _range(values: pd.Series) -> str:
    """The range of what was measured; nothing where nothing was."""
    measured = values.dropna()
    return span(measured.min(), measured.max()) if len(measured) else ""


def survivors(results: Results) -> list[str]:
    """For each method of heads and neurons, which layers keep the most and the fewest, where it keeps the least."""
    if "survivors" not in structure.drawable(results):
        return []
    frame = structure.alive(results)
    told = []
    for method, layers in frame.groupby("method", sort=False):
        share = layers["target_density"].min()
        means = layers[layers["target_density"] == share].groupby(["part", "layer"])["achieved"].mean()
        parts = [_layers(means[part], part) for part in structure.PARTS if part in means]
        told.append(f"With {percent(share)} kept, {look(method).label} leaves {', and '.join(parts)}.")
    return told


def _layers(means: pd.Series, part: str) -> str:
    """The layers with the most and the fewest, or that all have the same."""
    most, fewest = percent(round(means.max(), 2)), percent(round(means.min(), 2))
    if most == fewest:
        return f"{most} of the {part} in each layer"
    return f"{most} of the {part} in layer {means.idxmax()} and {fewest} in layer {means.idxmin()}"


def _tokens(results: Results) -> str:
    """What the kept patches hold: more than their share, if the selector has learned where the digit is."""
    if "kept_tokens" not in structure.drawable(results):
        return ""
    share, ink = results.tokens["kept"].mean(), ink_kept(results.tokens["images"], results.tokens["kept"])
    return f"The {percent(round(float(share), 2))} of the patches that stay hold {percent(round(ink, 2))} of the ink."
