"""Figure of a moving topology: how much is replaced at each update, how much was ever alive."""

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from svite.report.results import Results
from svite.report.style import canvas, drawn, key, look, sparsity_of


@drawn
def topology(results: Results) -> Figure:
    """Churn and ITOP rate over training, one column a method whose topology moves."""
    updates = _progress(results)
    methods = [m for m in results.methods if updates.loc[updates["method"] == m, "born"].any()]
    fig = canvas(
        7.2, 4.25, "How the topology moves",
        "Churn: the weights born at an update, as a share of those alive. ITOP rate: the prunable "
        "weights\nthat have been alive at least once so far. Mean over seeds, one line a sparsity.",
    )  # fmt: skip
    axes = fig.subplots(2, max(1, len(methods)), sharex=True, sharey="row", squeeze=False)
    for (above, below), method in zip(axes.T, methods, strict=False):
        _lines(above, updates[updates["method"] == method], "churn", results.densities)
        _lines(below, updates[updates["method"] == method], "itop", results.densities)
        above.set_title(look(method).label)
        below.set_xlabel("Training steps done (%)")
    axes[0, 0].set_ylabel("Churn (born / alive)")
    axes[1, 0].set_ylabel("ITOP rate (ever alive)")
    key(fig, axes[0, 0])
    return fig


def _lines(ax: Axes, updates: pd.DataFrame, value: str, densities: list[float]) -> None:
    for density, color in zip(densities, sns.color_palette("flare", len(densities)), strict=True):
        mean = updates[updates["target_density"] == density].groupby("progress")[value].mean()
        ax.plot(mean, color=color, lw=1.7, label=f"{sparsity_of(density)} sparsity")
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    ax.set(xlim=(0, 100), ylim=(0, None))


def _progress(results: Results) -> pd.DataFrame:
    """Updates with their churn and the share of training done at them, in percent."""
    updates, total = results.updates, results.epochs.groupby("key")["step"].max()
    return updates.assign(
        progress=100 * updates["step"] / updates["key"].map(total),
        churn=updates["born"] / updates["alive"],
    )
