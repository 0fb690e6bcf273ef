"""The figures of the study: how accurate, at which sparsity, at which cost, in which layers.

Every function takes `Results` and gives a matplotlib figure; `save` writes it as SVG and PNG.
The figures of the other modules are here too, so that a notebook needs this one alone.
"""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, PercentFormatter

from svite.report.attention import attention, attention_shared
from svite.report.diagram import cycle
from svite.report.results import Results
from svite.report.schedules import drop_fraction, gradual
from svite.report.style import (
    INK,
    band,
    canvas,
    drawn,
    key,
    legend_beside,
    look,
    place,
    save,
    sizes,
    sparsity_axis,
    sparsity_of,
    spread,
)
from svite.report.topology import topology

__all__ = [
    "accuracy", "attention", "attention_shared", "cost", "cycle", "drop_fraction", "gradual",
    "layers", "save", "topology", "training",
]  # fmt: skip


@drawn
def accuracy(results: Results) -> Figure:
    """Accuracy against sparsity: a line a method, a band for its mean, a dot for each seed."""
    fig = canvas(
        7.2, 4.7, "Test accuracy against sparsity",
        "Mean over seeds with the 95 % t interval of that mean (bands); dots are single seeds.\n"
        "Sparsity axis: equal steps divide the weights left by equal factors.",
    )  # fmt: skip
    ax = fig.subplots()
    _dense_line(ax, results)
    for index, method in enumerate(results.methods):
        style, runs = look(method), results.of(method)
        shift = 0.045 * (index - (len(results.methods) - 1) / 2)
        means = band(runs, "density", "top1").sort_index(ascending=False)
        x = np.array([place(density) for density in means.index]) + shift
        ax.fill_between(x, means["low"], means["high"], color=style.color, alpha=0.11, lw=0)
        ax.plot(x, means["mean"], color=style.color, marker=style.marker, mec="white", mew=0.8)
        dots = runs["density"].map(place) + shift
        ax.scatter(dots, runs["top1"], s=9, color=style.color, alpha=0.55, lw=0, zorder=3)
    _fit_accuracy(ax, results.runs["top1"])
    _name_lines(ax, results)
    sparsity_axis(ax, results.densities)
    ax.set_ylabel("Top-1 accuracy on test images (%)")
    return fig


def _dense_line(ax: Axes, results: Results) -> None:
    """The dense model as a line from end to end, with the band of its mean."""
    style, runs = look("dense"), results.of("dense")
    dense = band(runs, "method", "top1").loc["dense"]
    ax.axhspan(dense["low"], dense["high"], color=style.color, alpha=0.10, lw=0)
    ax.axhline(dense["mean"], color=style.color, lw=1.4, ls=(0, (5, 2)))
    ax.scatter([0.0] * len(runs), runs["top1"], s=9, color=style.color, alpha=0.7, lw=0, zorder=3)
    ax.set_xlim(-0.14, place(min(results.densities)) + 0.16)


def _fit_accuracy(ax: Axes, values: pd.Series) -> None:
    """The accuracies that were measured fill the panel; a band may leave it."""
    room = 0.07 * max(1.0, values.max() - values.min())
    ax.set_ylim(values.min() - room, min(100.0, values.max() + room))


def _name_lines(ax: Axes, results: Results) -> None:
    """Each line's name beside its right end, moved apart where names would overlap."""
    runs = results.runs
    last = runs[(runs["density"] == min(results.densities)) | (runs["method"] == "dense")]
    ends = last.groupby("method")["top1"].mean()
    low, high = ax.get_ylim()
    for method, height in zip(ends.index, spread(ends, 0.052 * (high - low)), strict=True):
        ax.annotate(
            look(method).label, (1.015, height), xycoords=("axes fraction", "data"), va="center",
            color=look(method).color, weight="bold", annotation_clip=False,
        )  # fmt: skip


@drawn
def cost(results: Results) -> Figure:
    """Accuracy against what the training cost: equal images are not equal operations."""
    fig = canvas(
        7.2, 4.5, "Test accuracy against the operations that training took",
        "Multiply-accumulates, dead weights counted as free except where their gradients are needed. Methods\n"
        "that start from a dense model pay for its training too. Mean over seeds.",
    )  # fmt: skip
    ax, large = fig.subplots(), sizes(results.densities)
    for method in results.methods:
        style = look(method)
        means = results.of(method).groupby("density")[["training_cost", "top1"]].mean()
        means = means.sort_index(ascending=False)
        ax.plot(means["training_cost"], means["top1"], color=style.color, lw=1.2, alpha=0.7)
        for density, (x, y) in zip(means.index, means.to_numpy(), strict=True):
            ax.plot(x, y, style.marker, color=style.color, ms=large[density] * style.scale, mec="white", mew=0.8)
    dense, style = results.of("dense")["top1"].mean(), look("dense")
    ax.plot(1, dense, style.marker, color=style.color, ms=9 * style.scale, mec="white")
    ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    ax.set_xlim(0, 1.05 * max(1.0, results.runs["training_cost"].max()))
    ax.margins(y=0.08)
    ax.set_xlabel("Operations of training, dense pre-training included (dense run = 100 %)")
    ax.set_ylabel("Top-1 accuracy on test images (%)")
    marks = {sparsity_of(density): size for density, size in large.items()}
    legend_beside(ax, ["dense", *results.methods], marks, "Sparsity")
    return fig


@drawn
def training(results: Results) -> Figure:
    """Validation accuracy and training loss as the budget is spent, one column a density."""
    fig = canvas(
        7.2, 5.0, "Training curves at each sparsity",
        "Mean over seeds against the images a run is charged for: a method that starts from a "
        "dense model\nbegins where that model's half of the budget ends.",
    )  # fmt: skip
    axes = fig.subplots(2, len(results.densities), sharex=True, sharey="row", squeeze=False)
    epochs = _charged(results)
    for (above, below), density in zip(axes.T, results.densities, strict=True):
        here = epochs[(epochs["target_density"] == density) | epochs["method"].isin(["dense", "half"])]
        _curves(above, here, "validation_top1")
        _curves(below, here, "train_loss")
        above.set_title(f"{sparsity_of(density)} sparsity")
        below.set_xlabel("Images (thousands)")
    axes[0, 0].set_ylim(max(0, np.quantile(epochs["validation_top1"], 0.10)), 100)
    axes[0, 0].set_ylabel("Validation accuracy (%)")
    axes[1, 0].set_ylabel("Training loss")
    key(fig, axes[0, 0])
    return fig


def _charged(results: Results) -> pd.DataFrame:
    """Epochs with the images a run is charged for by their end, in thousands."""
    epochs = results.epochs
    last = epochs.groupby("key")["images"].transform("max")
    total = epochs["key"].map(results.runs.set_index("key")["images_charged"]).fillna(last)
    return epochs.assign(charged=(epochs["images"] + total - last) / 1000)


def _curves(ax: Axes, epochs: pd.DataFrame, value: str) -> None:
    for method, runs in epochs.groupby("method", sort=False):
        style, mean = look(method), runs.groupby("charged")[value].mean()
        dashes = {"dense": (0, (5, 2)), "half": (0, (1, 1))}.get(method, "-")
        ax.plot(mean, color=style.color, lw=1.4, ls=dashes, label=style.label)


@drawn
def layers(results: Results) -> Figure:
    """The density that each layer was asked to have, and what each method gave it."""
    count = len(results.densities)
    fig = canvas(
        7.2, 1.5 + 1.02 * count, "Density layer by layer",
        "Density: the share of a layer's weights that live. Grey: what ERK asks for.\n"
        "Markers: what each method left in it, mean over seeds.",
    )  # fmt: skip
    axes = fig.subplots(count, sharex=True, squeeze=False)[:, 0]
    for ax, density in zip(axes, results.densities, strict=True):
        _layer_panel(ax, results, density)
    units = [_short(unit) for unit in results.layers["unit"].unique()]
    axes[-1].set_xticks(range(len(units)), units, rotation=90, size=min(8.0, 180 / len(units)))
    fig.supylabel("Density (log scale)", size=9, color=INK)
    key(fig, axes[0])
    return fig


def _layer_panel(ax: Axes, results: Results, density: float) -> None:
    here = results.layers[results.layers["target_density"] == density]
    asked = _asked_by_erk(here)
    spots = np.arange(len(asked))
    ax.hlines(asked, spots - 0.45, spots + 0.45, color="#c9ced4", lw=5, label="Asked by ERK")
    for index, method in enumerate(results.methods):
        style, shift = look(method), 0.14 * (index - (len(results.methods) - 1) / 2)
        left = here[here["method"] == method].groupby("unit", sort=False)["achieved"].mean()
        ax.plot(
            spots + shift, left.to_numpy(), style.marker, color=style.color, ms=4.2, mec="white",
            mew=0.5, label=style.label,
        )  # fmt: skip
    ax.set_title(f"{sparsity_of(density)} sparsity")
    low = min(asked.min(), here["achieved"].min())
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if low > 0.04 else (1, 3), numticks=12))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
    ax.set_ylim(0.8 * low, 1.3)
    ax.set_xlim(-0.8, len(asked) - 0.2)
    ax.grid(axis="x", visible=False)


def _asked_by_erk(layers: pd.DataFrame) -> pd.Series:
    """What ERK asks of each layer: the same of every method that drops and grows."""
    moving = layers[layers["method"].isin(["svite", "set", "rigl"])]
    return (moving if len(moving) else layers).groupby("unit", sort=False)["target"].first()


def _short(unit: str) -> str:
    """A layer's name as an axis has room for it: blocks.2.mlp.fc1.weight -> 3 fc1."""
    parts = unit.removesuffix(".weight").split(".")
    if parts[0] == "blocks":
        return f"{int(parts[1]) + 1} {parts[-1]}"
    return {"patch_embed": "patches", "head": "classifier"}.get(parts[0], parts[0])
