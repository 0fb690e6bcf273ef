"""What was found, computed from the results, so that no number or verdict is typed by hand."""

import json
from collections.abc import Sequence
from typing import Any

from svite.params.run import DENSE
from svite.report import attention, figures
from svite.report.results import Results
from svite.report.style import sparsity_of
from svite.report.text import listed, means, seeds

NEAR = 1.0  # points of top-1 below dense that count as "as good, nearly"


def findings(results: Results) -> dict[str, Any]:
    """The facts that the report's prose needs."""
    study, dense = results.study, results.of(results.study.baseline)
    contest = duel(results, study.rival, study.reference) if study.rival and study.reference else []
    return {
        "data": results.data,
        "model": study.model.model_dump(mode="json"),
        "recipe": study.recipe.model_dump(mode="json"),
        "settings": _settings(results),
        "seeds": seeds(results.runs),
        "most_seeds": int(results.runs.groupby(["label", "density"]).size().max()),
        "means": means(results.runs),
        "sparsities": [sparsity_of(density) for density in results.densities],
        "baseline": study.baseline,
        "reference": study.reference,
        "rival": study.rival,
        "labels": results.labels,
        "parameters": int(dense.iloc[0]["parameters"]),
        "forward_macs": float(dense.iloc[0]["forward_macs"]),
        "images": [int(images) for images in sorted(results.runs["images_charged"].unique())],
        "dense": _mean_and_spread(dense["top1"]) | {"validation": dense["validation_top1"].mean()},
        "best": [_best(results, density) for density in results.densities],
        "contest": contest,
        "verdict": verdict(contest, study.rival or "", study.reference or ""),
        "near": [_nearest(results, label) for label in results.labels],
        "itop": _itop(results),
        "attention": attention.facts(results),
        "figures": figures.drawable(results),
    }


def _settings(results: Results) -> list[dict[str, Any]]:
    """What each setting is: its method and options, where it starts, and whether it has a recipe of its own."""
    study = results.study
    epochs = {planned.label: planned.run.recipe.epochs for planned in study.runs}
    return [
        {
            "label": setting.label,
            "method": setting.method,
            "dense": setting.method == DENSE,
            "group": setting.group,
            "options": [f"{name}: {_plain(value)}" for name, value in setting.options.items()],
            "start": setting.start,
            "epochs": epochs[setting.label],
            "model": [f"{name}: {_plain(value)}" for name, value in setting.model.items()],
            "recipe": [f"{name}: {_plain(value)}" for name, value in setting.recipe.items()],
        }
        for setting in study.settings
    ]


def _plain(value: Any) -> str:
    """An option's value as `params.yaml` may have it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _mean_and_spread(values: Any) -> dict[str, float | None]:
    spread = float(values.std()) if len(values) > 1 else None
    return {"mean": float(values.mean()), "std": spread}


def _paired(results: Results, label: str, against: str, density: float) -> dict[str, float] | None:
    """A setting minus another at one density, in points with its interval; None if not compared."""
    gap = results.gap(label, against, density)
    return gap and {name: float(getattr(gap, name)) for name in ("difference", "low", "high")}


def _best(results: Results, density: float) -> dict[str, Any]:
    """The most accurate setting at a density, and what separates it from the baseline."""
    runs = results.of(*results.labels).query("density == @density")
    accuracy = runs.groupby("label", sort=False)["top1"].mean()
    label = accuracy.idxmax()
    gap = _paired(results, label, results.study.baseline, density)
    facts = {"sparsity": sparsity_of(density), "label": label, "top1": accuracy[label], "of": len(accuracy)}
    return facts | {"against_dense": gap}


def duel(results: Results, one: str, other: str) -> list[dict[str, Any]]:
    """Two settings at every density; who is ahead where the interval leaves out zero."""
    rows = []
    for density in results.densities:
        if gap := _paired(results, one, other, density):
            ahead = "ahead" if gap["low"] > 0 else "behind" if gap["high"] < 0 else "level"
            spent = results.of(one, other).query("density == @density").groupby("label")["training_cost"].mean()
            names = {"sparsity": sparsity_of(density), "state": ahead}
            rows.append(names | gap | {"cost": spent[one], "other_cost": spent[other]})
    return rows


def verdict(rows: Sequence[dict[str, Any]], one: str, other: str) -> str:
    """One sentence on who beats whom, and at which sparsities.

    >>> rows = [{"sparsity": "40 %", "state": "level"}, {"sparsity": "90 %", "state": "ahead"}]
    >>> verdict(rows, "A", "B")
    'A beats B at 90 % sparsity; no difference is resolved at 40 %.'
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
            place = "every sparsity compared" if everywhere else f"{listed(where[state])}{unit}"
            parts.append(f"{winner} beats {loser} at {place}")
    if not parts:
        parts.append(f"No difference between {one} and {other} is resolved at any sparsity compared")
    elif where["level"]:
        parts.append(f"no difference is resolved at {listed(where['level'])}")
    return f"{'; '.join(parts)}."


def _nearest(results: Results, label: str) -> dict[str, Any]:
    """The highest sparsity at which a setting stays within a point of the baseline's mean, if any."""
    dense = results.of(results.study.baseline)["top1"].mean()
    accuracy = results.of(label).groupby("density")[["top1", "training_cost"]].mean()
    near = accuracy[accuracy["top1"] >= dense - NEAR]
    facts: dict[str, Any] = {"label": label, "sparsity": None}
    if len(near):
        density = near.index.min()
        facts |= {"sparsity": sparsity_of(density), "top1": near.loc[density, "top1"]}
        facts |= {"cost": near.loc[density, "training_cost"]}
    return facts


def _itop(results: Results) -> list[dict[str, Any]]:
    """The share of weights that were active at some time, by the end, where the topology moves: a cell a sparsity."""
    last = results.epochs.sort_values("epoch").groupby("key").tail(1)
    rates = last.groupby(["label", "target_density"])["itop"].mean()
    return [
        {"label": label, "rates": [rates.get((label, density)) for density in results.densities]}
        for label in figures.moving(results)
    ]
