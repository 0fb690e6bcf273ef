"""Figure of a moving topology: how much is replaced at each update, how much was ever active."""

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from svite.report.results import Results
from svite.report.style import canvas, drawn, key, sparsity_of
from svite.report.text import mean


@drawn
def topology(results: Results) -> Figure:
    """Churn and ITOP rate over training, one column a setting whose topology moves."""
    updates, labels = _progress(results), moving(results)
    fig = canvas(
        7.2, 4.25, "How the topology moves",
        "Churn: the weights grown at an update, as a share of the active ones. ITOP rate: the prunable "
        "weights\nthat have been active at least once so far. " + mean(results.runs) + ", one line a sparsity.",
    )  # fmt: skip
    axes = fig.subplots(2, len(labels), sharex=True, sharey="row", squeeze=False)
    for (above, below), label in zip(axes.T, labels, strict=True):
        _lines(above, updates[updates["label"] == label], "churn", results.densities)
        _lines(below, updates[updates["label"] == label], "itop", results.densities)
        above.set_title(label)
        below.set_xlabel("Training steps done (%)")
    axes[0, 0].set_ylabel("Churn")
    axes[1, 0].set_ylabel("ITOP rate")
    key(fig, axes[0])
    return fig


def moving(results: Results) -> list[str]:
    """The settings that grow weights at some update."""
    if not results.labels:
        return []
    grown = results.updates.groupby("label")["born"].sum()
    return [label for label in results.labels if grown.get(label, 0) > 0]


def _lines(ax: Axes, updates: pd.DataFrame, value: str, densities: list[float]) -> None:
    for density, color in zip(densities, sns.color_palette("flare", len(densities)), strict=True):
        line = updates[updates["target_density"] == density].groupby("progress")[value].mean()
        if len(line):
            ax.plot(line, color=color, lw=1.7, label=f"{sparsity_of(density)} sparsity")
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    ax.set(xlim=(0, 100), ylim=(0, None))


def _progress(results: Results) -> pd.DataFrame:
    """Updates with their churn and the share of training done at them, in percent."""
    updates, total = results.updates, results.epochs.groupby("key")["step"].max()
    return updates.assign(
        progress=100 * updates["step"] / updates["key"].map(total),
        churn=updates["born"] / updates["alive"],
    )
