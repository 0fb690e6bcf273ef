"""What was found, computed from the results, so that no number or verdict is typed by hand."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from svite.report.results import Results
from svite.report.style import look, sparsity_of
from svite.report.text import listed

NEAR = 1.0  # points of top-1 below dense that count as "as good, nearly"


def findings(results: Results) -> dict[str, Any]:
    """The facts that the report's prose needs."""
    dense, first = results.of("dense"), results.runs.iloc[0]
    contest = duel(results, "gmp", "svite")
    return {
        "data": results.data,
        "seeds": int(results.runs["seed"].nunique()),
        "sparsities": [sparsity_of(density) for density in results.densities],
        "methods": results.methods,
        "parameters": int(first["parameters"]),
        "forward_macs": float(first["forward_macs"]),
        "images": int(first["images_charged"]),
        "epochs": int(first["epochs"]),
        "half_epochs": _half_epochs(results),
        "dense": _mean_and_spread(dense["top1"]) | {"validation": dense["validation_top1"].mean()},
        "best": [_best(results, density) for density in results.densities],
        "contest": contest,
        "verdict": verdict(contest, "gradual magnitude pruning", "SViTE"),
        "near": [_nearest(results, method) for method in results.methods],
        "itop": _itop(results),
        "pair": _pair(results),
    }


def _mean_and_spread(values: Any) -> dict[str, float | None]:
    spread = float(values.std()) if len(values) > 1 else None
    return {"mean": float(values.mean()), "std": spread}


def _half_epochs(results: Results) -> int | None:
    half = results.epochs[results.epochs["method"] == "half"]
    return int(half["epoch"].max()) if len(half) else None


def _paired(results: Results, method: str, against: str, density: float) -> dict[str, float] | None:
    """Method minus another at one density, in points with its interval; None if not compared."""
    gap = results.gap(method, against, density)
    return gap and {name: float(getattr(gap, name)) for name in ("difference", "low", "high")}


def _best(results: Results, density: float) -> dict[str, Any]:
    """The most accurate method at a density, and what separates it from dense."""
    means = results.of(*results.methods).query("density == @density")
    means = means.groupby("method", sort=False)["top1"].mean()
    method = means.idxmax()
    gap = _paired(results, method, "dense", density)
    facts = {"sparsity": sparsity_of(density), "label": look(method).label, "top1": means[method]}
    return facts | {"against_dense": gap}


def duel(results: Results, one: str, other: str) -> list[dict[str, Any]]:
    """Two methods at every density; who is ahead where the interval leaves out zero."""
    rows = []
    for density in results.densities:
        if gap := _paired(results, one, other, density):
            ahead = "ahead" if gap["low"] > 0 else "behind" if gap["high"] < 0 else "level"
            costs = results.of(one, other).query("density == @density").groupby("method")
            spent = costs["training_cost"].mean()
            names = {"sparsity": sparsity_of(density), "state": ahead}
            rows.append(names | gap | {"cost": spent[one], "other_cost": spent[other]})
    return rows


def verdict(rows: Sequence[dict[str, Any]], one: str, other: str) -> str:
    """One sentence on who beats whom, and at which sparsities.

    >>> rows = [{"sparsity": "40 %", "state": "level"}, {"sparsity": "90 %", "state": "ahead"}]
    >>> verdict(rows, "gradual magnitude pruning", "SViTE")
    'Gradual magnitude pruning beats SViTE at 90 % sparsity; no difference is resolved at 40 %.'
    """
    if not rows:
        return ""
    where = {
        state: [row["sparsity"] for row in rows if row["state"] == state] for state in ("ahead", "behind", "level")
    }
    names = {"ahead": (one, other), "behind": (other, one)}
    parts = []
    for state, (winner, loser) in names.items():
        if where[state]:
            everywhere = len(where[state]) == len(rows) > 1
            unit = "" if parts else " sparsity"
            place = "every sparsity tried" if everywhere else f"{listed(where[state])}{unit}"
            parts.append(f"{winner} beats {loser} at {place}")
    if not parts:
        parts.append(f"no difference between {one} and {other} is resolved at any sparsity tried")
    elif where["level"]:
        parts.append(f"no difference is resolved at {listed(where['level'])}")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def _nearest(results: Results, method: str) -> dict[str, Any]:
    """The sparsest setting at which a method stays within a point of the dense mean, if any."""
    dense = results.of("dense")["top1"].mean()
    means = results.of(method).groupby("density")[["top1", "training_cost"]].mean()
    near = means[means["top1"] >= dense - NEAR]
    facts: dict[str, Any] = {"label": look(method).label, "sparsity": None}
    if len(near):
        density = near.index.min()
        facts |= {"sparsity": sparsity_of(density), "top1": near.loc[density, "top1"]}
        facts |= {"cost": near.loc[density, "training_cost"]}
    return facts


def _itop(results: Results) -> list[dict[str, Any]]:
    """The share of weights that had lived by the end, for methods whose topology moves."""
    moving = results.updates.groupby("method")["born"].sum()
    last = results.epochs.sort_values("epoch").groupby("key").tail(1)
    last = last[last["method"].isin(moving[moving > 0].index)]
    means = last.groupby(["method", "target_density"], sort=False)["itop"].mean()
    order = sorted(means.items(), key=lambda item: (results.methods.index(item[0][0]), -item[0][1]))
    return [
        {"label": look(method).label, "sparsity": sparsity_of(density), "rate": float(rate)}
        for (method, density), rate in order
    ]


def _pair(results: Results) -> dict[str, Any]:
    """How spread out attention is in the pair of models: bits of entropy, mean over heads."""
    bits = {}
    for key, maps in results.attention.items():
        share = maps.reshape(*maps.shape[:2], -1).astype(float)
        share = share / share.sum(-1, keepdims=True)
        bits[key] = float(-(share * np.log2(np.maximum(share, 1e-12))).sum(-1).mean())
    layers, heads, rows, columns = maps.shape
    svite, dense = results.pair["pair-svite"], results.pair["pair-dense"]
    return {
        "sparsity": sparsity_of(svite["density"]),
        "dense_bits": bits["pair-dense"], "svite_bits": bits["pair-svite"],
        "uniform_bits": float(np.log2(rows * columns)),
        "layers": layers, "heads": heads, "patches": [rows, columns],
        "dense_validation": dense["validation_top1"], "svite_validation": svite["validation_top1"],
    }  # fmt: skip
