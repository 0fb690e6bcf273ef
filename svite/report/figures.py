"""The figures of the study: how accurate, at which sparsity, at which cost, and how training went.

Every function takes `Results` and gives a matplotlib figure; `save` writes it as SVG and PNG. The figures of other
modules about single weights and attention are here too, so that a notebook needs this one alone.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from svite.params.run import DENSE
from svite.report.attention import attention, attention_shared, looked
from svite.report.diagram import cycle
from svite.report.layers import layers
from svite.report.results import Results
from svite.report.schedules import drop_fraction, falling, gradual, replacing
from svite.report.style import (
    Look,
    band,
    canvas,
    drawn,
    key,
    legend_beside,
    place,
    save,
    sizes,
    sparsity_axis,
    sparsity_of,
    spread,
)
from svite.report.text import mean, means
from svite.report.topology import moving, topology

__all__ = [
    "accuracy", "attention", "attention_shared", "cost", "cycle", "drop_fraction", "gradual",
    "layers", "save", "topology", "training",
]  # fmt: skip


def draw(results: Results, *names: str) -> dict[str, Figure]:
    """Those of these figures that the results have something for, by name."""
    there = drawable(results)
    return {name: globals()[name](results) for name in names if name in there}


def drawable(results: Results) -> list[str]:
    """The names of the figures that the results have something for; `cycle` needs no results."""
    sparse, maps = bool(results.labels), bool(looked(results))
    there = {
        "accuracy": sparse,
        "cost": sparse,
        "training": sparse,
        "layers": sparse,
        "topology": bool(moving(results)),
        "gradual": bool(falling(results)),
        "drop_fraction": bool(replacing(results)),
        "attention": maps,
        "attention_shared": maps,
    }
    return [name for name, is_there in there.items() if is_there]


@drawn
def accuracy(results: Results) -> Figure:
    """Accuracy against sparsity: a line a setting, a band for its mean, a dot for each seed."""
    fig = canvas(
        7.2, 4.7, "Test accuracy against sparsity",
        f"{means(results.runs)}\nSparsity axis: equal steps divide the weights left by equal factors.",
    )  # fmt: skip
    ax = fig.subplots()
    _dense_line(ax, results)
    for index, label in enumerate(results.labels):
        style, runs = results.looks[label], results.of(label)
        shift = 0.045 * (index - (len(results.labels) - 1) / 2)
        line = band(runs, "density", "top1").sort_index(ascending=False)
        x = np.array([place(density) for density in line.index]) + shift
        ax.fill_between(x, line["low"], line["high"], color=style.color, alpha=0.11, lw=0)
        ax.plot(x, line["mean"], color=style.color, marker=style.marker, mec="white", mew=0.8)
        dots = runs["density"].map(place) + shift
        ax.scatter(dots, runs["top1"], s=9, color=style.color, alpha=0.55, lw=0, zorder=3)
    _fit_accuracy(ax, results.runs["top1"])
    _name_lines(ax, results)
    sparsity_axis(ax, results.densities)
    ax.set_ylabel("Top-1 accuracy on test images (%)")
    return fig


def _dense_line(ax: Axes, results: Results) -> None:
    """The dense model as a line from end to end, with the band of its mean."""
    style, runs = results.looks[results.study.baseline], results.of(results.study.baseline)
    dense = band(runs, "label", "top1").iloc[0]
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
    last = runs[runs["density"] == runs.groupby("label")["density"].transform("min")]
    ends = last.groupby("label")["top1"].mean()
    low, high = ax.get_ylim()
    for label, height in zip(ends.index, spread(ends, 0.052 * (high - low)), strict=True):
        ax.annotate(
            label, (1.015, height), xycoords=("axes fraction", "data"), va="center",
            color=results.looks[label].color, weight="bold", annotation_clip=False,
        )  # fmt: skip


@drawn
def cost(results: Results) -> Figure:
    """Accuracy against what the training cost: equal images are not equal operations."""
    fig = canvas(
        7.2, 4.5, "Test accuracy against the operations that training took",
        "Multiply-accumulates, zero weights counted as free except where their gradients are needed. Settings\n"
        "that start from a dense model pay for its training too. " + mean(results.runs) + ".",
    )  # fmt: skip
    ax, large = fig.subplots(), sizes(results.densities)
    for label in results.labels:
        style = results.looks[label]
        line = results.of(label).groupby("density")[["training_cost", "top1"]].mean().sort_index(ascending=False)
        ax.plot(line["training_cost"], line["top1"], color=style.color, lw=1.2, alpha=0.7)
        for density, (x, y) in zip(line.index, line.to_numpy(), strict=True):
            ax.plot(x, y, **style.alone, ms=large[density] * style.scale, mec="white", mew=0.8)
    shown = {label: results.looks[label] for label in results.runs["label"].unique()}
    dense, style = results.of(results.study.baseline)["top1"].mean(), shown[results.study.baseline]
    ax.plot(1, dense, **style.alone, ms=9 * style.scale, mec="white")
    ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    ax.set_xlim(0, 1.05 * max(1.0, results.runs["training_cost"].max()))
    ax.margins(y=0.08)
    ax.set_xlabel("Operations of training, dense pre-training included (dense run = 100 %)")
    ax.set_ylabel("Top-1 accuracy on test images (%)")
    marks = {sparsity_of(density): size for density, size in large.items()}
    legend_beside(ax, shown, marks, "Sparsity")
    return fig


@drawn
def training(results: Results) -> Figure:
    """Validation accuracy and training loss as the budget is spent, one column a density."""
    fig = canvas(
        7.2, 5.0, "Training curves at each sparsity",
        f"{mean(results.runs)}, against the images a run is charged for: a setting that starts from a dense\n"
        "model begins where the training of that model (dotted) ends.",
    )  # fmt: skip
    axes = fig.subplots(2, len(results.densities), sharex=True, sharey="row", squeeze=False)
    epochs, looks = _charged(results), results.looks
    always = (epochs["label"] == results.study.baseline) | (epochs["group"] == "start")
    for (above, below), density in zip(axes.T, results.densities, strict=True):
        here = epochs[(epochs["target_density"] == density) | always]
        _curves(above, here, "validation_top1", looks)
        _curves(below, here, "train_loss", looks)
        above.set_title(f"{sparsity_of(density)} sparsity")
        below.set_xlabel("Images (thousands)")
    axes[0, 0].set_ylim(max(0, np.quantile(epochs["validation_top1"], 0.10)), 100)
    axes[0, 0].set_ylabel("Validation accuracy (%)")
    axes[1, 0].set_ylabel("Training loss")
    key(fig, axes[0])
    return fig


def _charged(results: Results) -> pd.DataFrame:
    """Epochs with the images a run is charged for by their end, in thousands."""
    epochs = results.epochs
    last = epochs.groupby("key")["images"].transform("max")
    total = epochs["key"].map(results.runs.set_index("key")["images_charged"]).fillna(last)
    return epochs.assign(charged=(epochs["images"] + total - last) / 1000)


def _curves(ax: Axes, epochs: pd.DataFrame, value: str, looks: Mapping[str, Look]) -> None:
    for (label, method, group), runs in epochs.groupby(["label", "method", "group"], sort=False):
        line = runs.groupby("charged")[value].mean()
        dashes = (0, (1, 1)) if group == "start" else (0, (5, 2)) if method == DENSE else "-"
        ax.plot(line, color=looks[label].color, lw=1.4, ls=dashes, label=label)
