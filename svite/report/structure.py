"""Figures of what is taken away whole, heads, neurons, features and tokens: accuracy, measured time, what is left."""

from collections.abc import Iterable

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from svite.report.costs import costs
from svite.report.measured import latencies, machine
from svite.report.results import Results
from svite.report.style import INK, Look, band, canvas, drawn, legend_beside, percent, sizes
from svite.report.text import means
from svite.report.tokens import kept_tokens, selection

PARTS = ("heads", "neurons")
UNIT = r"blocks\.(\d+)\.\w+\.(heads|neurons)"  # what a unit of heads or neurons is called
BATCH = 64  # where the clock is the least about Python


def figures(results: Results) -> dict[str, Figure]:
    """Every figure that these results have something for, by name; none where nothing is taken away whole."""
    draw = {f.__name__: f for f in (structured_accuracy, latency, survivors, kept_tokens)}
    return {name: draw[name](results) for name in drawable(results)}


def drawable(results: Results) -> list[str]:
    """The names of the figures that these results have something for."""
    runs = results.structured
    there = {
        "structured_accuracy": len(runs) > 0,
        "latency": len(runs) > 0 and _timed(results),
        "survivors": len(runs) > 0 and len(alive(results)) > 0,
        "kept_tokens": selection(results) is not None,
    }
    return [name for name, is_there in there.items() if is_there]


def _timed(results: Results) -> bool:
    found = latencies(results.folder).query("batch == @BATCH")
    return bool(results.structured["key"].isin(found["key"]).any())


@drawn
def structured_accuracy(results: Results) -> Figure:
    """Accuracy against the parameters that are left: each structured setting beside the reference and the baseline."""
    study, labels = results.study, results.structured_labels
    compared = f"\nFor comparison {study.reference}, of single weights, from {study.baseline} on to the left."
    fig = canvas(
        7.2, 4.6, "Test accuracy against the parameters that are left",
        means(results.structured) + (compared if study.reference else ""),
    )  # fmt: skip
    ax = fig.subplots()
    runs = pd.concat([results.of(study.baseline, study.reference or ""), results.structured], ignore_index=True)
    runs = runs.assign(share=runs["nonzero"] / runs["parameters"])
    large = sizes(results.structured["density"])
    shown = runs[runs["share"] >= 0.9 * runs.loc[runs["label"].isin(labels), "share"].min()]
    _compared(ax, runs[runs["group"] == "weights"], results)
    for label in labels:
        _setting(ax, runs[runs["label"] == label], large, results.looks[label])
    _fit(ax, shown)
    ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    ax.set_xlabel("Non-zero parameters, as a share of the dense model's")
    ax.set_ylabel("Top-1 accuracy on test images (%)")
    looks = {label: results.looks[label] for label in runs["label"].unique()}
    legend_beside(ax, looks, {percent(share): size for share, size in large.items()}, "Kept")
    return fig


def _compared(ax: Axes, runs: pd.DataFrame, results: Results) -> None:
    """The line of the reference from the baseline on, and the baseline as a line from end to end."""
    baseline, reference = results.study.baseline, results.study.reference
    style, dense = results.looks[baseline], band(runs[runs["label"] == baseline], "label", "top1").iloc[0]
    ax.axhspan(dense["low"], dense["high"], color=style.color, alpha=0.10, lw=0)
    ax.axhline(dense["mean"], color=style.color, lw=1.4, ls=(0, (5, 2)))
    if reference:
        line, own = runs.groupby("density")[["share", "top1"]].mean(), results.looks[reference]
        ax.plot(line["share"], line["top1"], color=own.color, lw=1.2, alpha=0.7, zorder=1)
        ax.plot(line["share"][:-1], line["top1"][:-1], **own.alone, ms=7, mec="white", mew=0.8)
    ax.plot(1, dense["mean"], **style.alone, ms=9 * style.scale, mec="white")


def _setting(ax: Axes, runs: pd.DataFrame, large: dict[float, float], style: Look) -> None:
    """One structured setting: means with their intervals, joined, and a dot for each seed."""
    line = band(runs, "density", "top1").assign(share=runs.groupby("density")["share"].mean())
    ax.plot(line["share"], line["mean"], color=style.color, lw=1.2, alpha=0.7)
    ax.scatter(runs["share"], runs["top1"], s=9, color=style.color, alpha=0.45, lw=0)
    for share, row in line.iterrows():
        ax.plot([row["share"]] * 2, [row["low"], row["high"]], color=style.color, lw=1.2, alpha=0.35)
        size = large[share] * style.scale
        ax.plot(row["share"], row["mean"], **style.alone, ms=size, mec="white", mew=0.8)


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
    shares = frame.loc[frame["label"] != results.study.baseline, "kept"]
    large = {share: 0.85 * size for share, size in sizes(shares).items()}
    looks = {label: results.looks[label] for label in frame["label"].unique()}
    for label, rows in frame.groupby("label", sort=False):
        joined, style = label in results.structured_labels, looks[label]
        _shares(counted, rows, "macs_share", large, joined, style)
        _shares(timed, rows, f"time_{BATCH}", large, joined, style)
        timed.hlines(rows["top1"], 1 / rows[f"high_{BATCH}"], 1 / rows[f"low_{BATCH}"], color=style.color, lw=1)
    counted.xaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    counted.margins(x=0.1, y=0.08)
    counted.set(xlabel="Multiply-accumulates of an image", ylabel="Top-1 accuracy on test images (%)")
    timed.set_xlabel("Measured time")
    marks = {percent(share): size for share, size in large.items()}
    legend_beside(counted, looks, marks, "Kept")
    return fig


def _shares(ax: Axes, rows: pd.DataFrame, value: str, large: dict[float, float], joined: bool, style: Look) -> None:
    """One setting, larger where more is kept; what takes whole parts away is joined."""
    if joined:
        ax.plot(rows[value], rows["top1"], color=style.color, lw=1.2, alpha=0.7)
    for row in rows.to_dict("records"):
        size = large.get(row["kept"], 8.5) * style.scale
        ax.plot(row[value], row["top1"], **style.alone, ms=size, mec="white", mew=0.7)


def alive(results: Results) -> pd.DataFrame:
    """The rows of `structured_layers` that are heads or neurons, each with its `part` and its `layer`, from 1 on."""
    layers = results.structured_layers
    found = layers["unit"].str.extract(UNIT)
    frame = layers.assign(part=found[1], layer=found[0].astype(float) + 1).dropna(subset=["part"])
    return frame.astype({"layer": int})


@drawn
def survivors(results: Results) -> Figure:
    """The heads that are left in each layer above, the neurons below: a group of bars a setting and kept share."""
    frame = alive(results)
    groups = [key for key, _ in frame.groupby(["label", "target_density"], sort=False)]
    fig = canvas(
        7.2, 4.3, "What is left in each layer",
        "The share of heads and of neurons that are left at the end: bars are means, dots single seeds.\n"
        "Dashed: the share asked for, of what is taken away.",
    )  # fmt: skip
    axes, depth = fig.subplots(2, sharex=True, sharey=True), int(frame["layer"].max())
    pitch = depth + 1.5
    for ax, part in zip(axes, PARTS, strict=True):
        for index, (label, goal) in enumerate(groups):
            here = frame.query("label == @label and target_density == @goal and part == @part")
            _bars(ax, here, index * pitch, results.looks[label].color, goal)
        ax.set_ylabel(f"{part.capitalize()} left")
        ax.grid(axis="x", visible=False)
    _name_groups(axes, {group: results.looks[group[0]] for group in groups}, depth, pitch)
    return fig


def _bars(ax: Axes, layers: pd.DataFrame, left: float, color: str, goal: float) -> None:
    """One group of bars, a bar a layer."""
    means = layers.groupby("layer")["achieved"].mean()
    ax.bar(left + means.index, means, width=0.82, color=color, alpha=0.45 + 0.4 * goal, lw=0)
    ax.scatter(left + layers["layer"], layers["achieved"], s=7, color=INK, alpha=0.6, lw=0, zorder=3)
    if len(means):
        ends = (left + means.index.min() - 0.55, left + means.index.max() + 0.55)
        ax.plot(ends, (goal, goal), color=INK, lw=1, ls=(0, (4, 2)))


def _name_groups(axes: Iterable[Axes], groups: dict[tuple[str, float], Look], depth: int, pitch: float) -> None:
    """Each group's setting and kept share above, its layers' numbers below."""
    above, below = axes
    for index, ((label, goal), style) in enumerate(groups.items()):
        middle = index * pitch + (depth + 1) / 2
        above.annotate(
            f"{label}\n{percent(goal)} kept", (middle, 1.04), xycoords=("data", "axes fraction"),
            ha="center", va="bottom", size=8, weight="bold", color=style.color, annotation_clip=False,
        )  # fmt: skip
    spots = [(index * pitch + layer, layer) for index in range(len(groups)) for layer in range(1, depth + 1)]
    below.set_xticks(*map(list, zip(*spots, strict=True)), size=min(8.0, 200 / len(spots)))
    below.set(xlabel="Layer", ylim=(0, 1.02))
    below.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    below.set_xlim(0, len(groups) * pitch - 0.5)
