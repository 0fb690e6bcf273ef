"""Figures of what is taken away whole, heads, neurons, features and tokens: accuracy, measured time, survivors."""

from collections.abc import Iterable

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from svite.report.costs import costs
from svite.report.measured import latencies, machine
from svite.report.results import Results
from svite.report.style import INK, band, canvas, drawn, legend_beside, look, percent, sizes
from svite.report.tokens import kept_tokens

PARTS = ("heads", "neurons")
UNIT = r"blocks\.(\d+)\.\w+\.(heads|neurons)"  # what a unit of heads or neurons is called
BATCH = 64  # where the clock is the least about Python


def figures(results: Results) -> dict[str, Figure]:
    """Every figure that these results have something for, by name; none without structured methods."""
    draw = {f.__name__: f for f in (structured_accuracy, latency, survivors, kept_tokens)}
    return {name: draw[name](results) for name in drawable(results)}


def drawable(results: Results) -> list[str]:
    """The names of the figures that these results have something for."""
    runs = results.structured
    there = {
        "structured_accuracy": len(runs) > 0,
        "latency": len(runs) > 0 and _timed(results),
        "survivors": len(runs) > 0 and len(alive(results)) > 0,
        "kept_tokens": "sviteplus" in set(runs["method"]),
    }
    return [name for name, is_there in there.items() if is_there]


def _timed(results: Results) -> bool:
    found = latencies(results.folder).query("batch == @BATCH")
    return bool(results.structured["key"].isin(found["key"]).any())


@drawn
def structured_accuracy(results: Results) -> Figure:
    """Accuracy against the parameters that are left: each structured method beside SViTE and dense."""
    fig = canvas(
        7.2, 4.6, "Test accuracy against the parameters that are left",
        "Mean over seeds with the 95 % t interval of that mean; dots are single seeds. SViTE,\n"
        "which drops single weights, is there for comparison: its line begins at the dense model\n"
        "and goes on to the left.",
    )  # fmt: skip
    ax = fig.subplots()
    runs = pd.concat([results.of("dense", "svite"), results.structured], ignore_index=True)
    runs = runs.assign(share=runs["nonzero"] / runs["parameters"])
    large, methods = sizes(results.structured["density"]), list(results.structured["method"].unique())
    shown = runs[runs["share"] >= 0.9 * runs.loc[runs["method"].isin(methods), "share"].min()]
    _compared(ax, runs)
    for method in methods:
        _method(ax, runs[runs["method"] == method], large)
    _fit(ax, shown)
    ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    ax.set_xlabel("Non-zero parameters, as a share of the dense model's")
    ax.set_ylabel("Top-1 accuracy on test images (%)")
    others = [method for method in ("dense", "svite") if method in set(runs["method"])]
    legend_beside(ax, [*others, *methods], {percent(share): size for share, size in large.items()}, "Kept")
    return fig


def _compared(ax: Axes, runs: pd.DataFrame) -> None:
    """The line of SViTE from the dense model on, and the dense model as a line from end to end."""
    style, dense = look("dense"), band(runs[runs["method"] == "dense"], "method", "top1").loc["dense"]
    ax.axhspan(dense["low"], dense["high"], color=style.color, alpha=0.10, lw=0)
    ax.axhline(dense["mean"], color=style.color, lw=1.4, ls=(0, (5, 2)))
    line = runs[runs["method"].isin(["dense", "svite"])].groupby("density")[["share", "top1"]].mean()
    blue = look("svite")
    ax.plot(line["share"], line["top1"], color=blue.color, lw=1.2, alpha=0.7, zorder=1)
    ax.plot(line["share"][:-1], line["top1"][:-1], blue.marker, color=blue.color, ms=7, mec="white", mew=0.8)
    ax.plot(1, dense["mean"], style.marker, color=style.color, ms=9 * style.scale, mec="white")


def _method(ax: Axes, runs: pd.DataFrame, large: dict[float, float]) -> None:
    """One structured method: means with their intervals, joined, and a dot for each seed."""
    style = look(runs["method"].iloc[0])
    means = band(runs, "density", "top1").assign(share=runs.groupby("density")["share"].mean())
    ax.plot(means["share"], means["mean"], color=style.color, lw=1.2, alpha=0.7)
    ax.scatter(runs["share"], runs["top1"], s=9, color=style.color, alpha=0.45, lw=0)
    for share, row in means.iterrows():
        ax.plot([row["share"]] * 2, [row["low"], row["high"]], color=style.color, lw=1.2, alpha=0.35)
        size = large[share] * style.scale
        ax.plot(row["share"], row["mean"], style.marker, color=style.color, ms=size, mec="white", mew=0.8)


def _fit(ax: Axes, shown: pd.DataFrame) -> None:
    """The runs shown fill the panel; lines and intervals may leave it."""
    low, high = shown["top1"].min(), shown["top1"].max()
    room = 0.07 * max(1.0, high - low)
    ax.set_ylim(low - room, min(100.0, high + room))
    ax.set_xlim(shown["share"].min() - 0.04, 1.03)


@drawn
def latency(results: Results) -> Figure:
    """Accuracy against operations, and against measured time, for every model whose time was measured."""
    frame = costs(results).dropna(subset=[f"time_{BATCH}"])
    fig = canvas(
        7.2, 4.8, "Test accuracy against operations, and against measured time",
        "As shares of the dense model's. Multiply-accumulates are those of the saved model as\n"
        f"it runs, in which single zeros count in full; time is that of a batch of {BATCH}, with its\n"
        f"95 % interval, on {machine(results.folder)}.",
    )  # fmt: skip
    counted, timed = fig.subplots(1, 2, sharex=True, sharey=True)
    large = {share: 0.85 * size for share, size in sizes(frame.loc[frame["method"] != "dense", "kept"]).items()}
    for method, rows in frame.groupby("method", sort=False):
        joined = method in set(results.structured["method"])
        _shares(counted, rows, "macs_share", large, joined)
        _shares(timed, rows, f"time_{BATCH}", large, joined)
        timed.hlines(rows["top1"], 1 / rows[f"high_{BATCH}"], 1 / rows[f"low_{BATCH}"], color=look(method).color, lw=1)
    counted.xaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    counted.margins(x=0.1, y=0.08)
    counted.set(xlabel="Multiply-accumulates of an image", ylabel="Top-1 accuracy on test images (%)")
    timed.set_xlabel("Measured time")
    marks = {percent(share): size for share, size in large.items()}
    legend_beside(counted, list(frame["method"].unique()), marks, "Kept")
    return fig


def _shares(ax: Axes, rows: pd.DataFrame, value: str, large: dict[float, float], joined: bool) -> None:
    """One method's settings, larger where more is kept; a structured method's are joined."""
    style = look(rows["method"].iloc[0])
    if joined:
        ax.plot(rows[value], rows["top1"], color=style.color, lw=1.2, alpha=0.7)
    for row in rows.to_dict("records"):
        size = large.get(row["kept"], 8.5) * style.scale
        ax.plot(row[value], row["top1"], style.marker, color=style.color, ms=size, mec="white", mew=0.7)


def alive(results: Results) -> pd.DataFrame:
    """The rows of `structured_layers` that are heads or neurons, each with its `part` and its `layer`, from 1 on."""
    layers = results.structured_layers
    found = layers["unit"].str.extract(UNIT)
    frame = layers.assign(part=found[1], layer=found[0].astype(float) + 1).dropna(subset=["part"])
    return frame.astype({"layer": int})


@drawn
def survivors(results: Results) -> Figure:
    """The heads that are left in each layer above, the neurons below: a group of bars a method and kept share."""
    frame = alive(results)
    groups = [key for key, _ in frame.groupby(["method", "target_density"], sort=False)]
    fig = canvas(
        7.2, 4.3, "What survives in each layer",
        "The share of heads and of neurons that live at the end: bars are means over seeds, dots single seeds.\n"
        "Dashed: the share asked for, over all layers or in each; VTP is asked for a share of features,\n"
        "and a head of it stays while any of its features does.",
    )  # fmt: skip
    axes, depth = fig.subplots(2, sharex=True, sharey=True), int(frame["layer"].max())
    pitch = depth + 1.5
    for ax, part in zip(axes, PARTS, strict=True):
        for index, (method, goal) in enumerate(groups):
            here = frame.query("method == @method and target_density == @goal and part == @part")
            _bars(ax, here, index * pitch, look(method).color, goal)
        ax.set_ylabel(f"{part.capitalize()} alive")
        ax.grid(axis="x", visible=False)
    _name_groups(axes, groups, depth, pitch)
    return fig


def _bars(ax: Axes, layers: pd.DataFrame, left: float, color: str, goal: float) -> None:
    """One group of bars, a bar a layer."""
    means = layers.groupby("layer")["achieved"].mean()
    ax.bar(left + means.index, means, width=0.82, color=color, alpha=0.45 + 0.4 * goal, lw=0)
    ax.scatter(left + layers["layer"], layers["achieved"], s=7, color=INK, alpha=0.6, lw=0, zorder=3)
    if len(means):
        ends = (left + means.index.min() - 0.55, left + means.index.max() + 0.55)
        ax.plot(ends, (goal, goal), color=INK, lw=1, ls=(0, (4, 2)))


def _name_groups(axes: Iterable[Axes], groups: list[tuple[str, float]], depth: int, pitch: float) -> None:
    """Each group's method and kept share above, its layers' numbers below."""
    above, below = axes
    for index, (method, goal) in enumerate(groups):
        middle = index * pitch + (depth + 1) / 2
        above.annotate(
            f"{look(method).label}\n{percent(goal)} kept", (middle, 1.04), xycoords=("data", "axes fraction"),
            ha="center", va="bottom", size=8, weight="bold", color=look(method).color, annotation_clip=False,
        )  # fmt: skip
    spots = [(index * pitch + layer, layer) for index in range(len(groups)) for layer in range(1, depth + 1)]
    below.set_xticks(*map(list, zip(*spots, strict=True)), size=min(8.0, 200 / len(spots)))
    below.set(xlabel="Layer", ylim=(0, 1.02))
    below.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    below.set_xlim(0, len(groups) * pitch - 0.5)
