"""Figures of the two schedules: how fast gradual pruning prunes, how much an update replaces."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from svite.report.results import Results
from svite.report.style import INK, LINE, MUTED, canvas, drawn, sparsity_of
from svite.sparsity.schedule import Schedule, cosine, cubic

GUIDES = (2, 4, 8, 10)
STEPS = range(1001)  # of a computed curve


def falling(results: Results) -> dict[str, list[pd.DataFrame]]:
    """What each setting logged whose density falls over several updates: its first seed, a frame a density."""
    logs = {label: [log for log in _logs(results, label) if _falls(log["density"])] for label in results.labels}
    return {label: found for label, found in logs.items() if found}


def replacing(results: Results) -> dict[str, pd.DataFrame]:
    """What each setting logged that replaces weights: its first seed at its first density."""
    logs = {label: [log for log in _logs(results, label) if (log["fraction"] > 0).any()] for label in results.labels}
    return {label: found[0] for label, found in logs.items() if found}


def _logs(results: Results, label: str) -> list[pd.DataFrame]:
    """The updates of one seed, for a schedule is the same for every seed, a frame a density."""
    updates = results.updates[results.updates["label"] == label]
    first = updates[updates["seed"] == updates["seed"].min()]
    return [log for _, log in first.groupby("target_density", sort=False)]


def _falls(density: pd.Series) -> bool:
    return density.nunique() > 2 and density.is_monotonic_decreasing


def _curve(schedule: Schedule) -> np.ndarray:
    return np.array([schedule(step) for step in STEPS])


@drawn
def gradual(results: Results) -> Figure:
    """The gradual pruning curve with its compression guides, and what runs logged."""
    fig = canvas(
        7.2, 4.3, "Gradual pruning: computed and measured",
        r"Thick: computed, $s(n) = s_f\,(1 - (1 - n/100)^3)$ to 90 %; dotted: where it has left 1/2, 1/4, 1/8 and 1/10"
        "\nof the weights. Markers: logged, from the first update to the last.",
    )  # fmt: skip
    ax, share = fig.subplots(), np.linspace(0, 100, len(STEPS))
    ax.plot(share, _curve(cubic(0.0, 0.9, end=STEPS[-1])), color="#9fb8d6", lw=5, solid_capstyle="round")
    _guides(ax)
    for label, logs in falling(results).items():
        style = results.looks[label]
        for log in logs:
            sparsity, step = 1 - log["density"].to_numpy(), log["step"].to_numpy()
            done = 100 * (step - step[0]) / (step[-1] - step[0])
            named = {"label": label} if log is logs[0] else {}
            ax.plot(
                done, sparsity, color=style.color, marker=style.marker, lw=0.9, ms=4.2, mec="white", mew=0.5, **named
            )
    _name_ends(ax, results)
    ax.legend(loc="lower right")
    ax.set(xlim=(-1, 101), ylim=(0, 1), xlabel="Pruning done (share of the steps from the first update to the last, %)")
    ax.set_ylabel("Sparsity")
    ax.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    return fig


def _name_ends(ax: Axes, results: Results) -> None:
    """The sparsity that is pruned to, beside the end of each curve."""
    for density in sorted({log["target_density"].iloc[0] for logs in falling(results).values() for log in logs}):
        ax.annotate(
            f"to {sparsity_of(density)}", (100, 1 - density), xytext=(8, 0), va="center",
            textcoords="offset points", color=INK, weight="bold", annotation_clip=False,
        )  # fmt: skip


def _guides(ax: Axes) -> None:
    """Where the curve to 90 % has halved the model once, twice, three times, and its end."""
    for factor in GUIDES:
        sparsity = 1 - 1 / factor
        step = 100 * (1 - (1 - min(1.0, sparsity / 0.9)) ** (1 / 3))
        ax.plot([step, step, 0], [0, sparsity, sparsity], color=MUTED, ls=":", lw=1, zorder=1)
        ax.annotate(
            f"{factor}×", (0, sparsity), xytext=(4, -10 if factor == 8 else 3), weight="bold",
            textcoords="offset points", color=INK, size=8,
        )  # fmt: skip


@drawn
def drop_fraction(results: Results) -> Figure:
    """The share of active weights replaced at an update: paper, released code, this study."""
    fig = canvas(
        7.2, 4.1, "Drop fraction: the share of active weights that an update replaces",
        "The paper's cosine reaches zero at 80 % of training, after which its topology rests; its released code's\n"
        "stands at 5 % there. Markers: what runs of this study logged.",
    )  # fmt: skip
    ax = fig.subplots()
    _published(ax)
    for label, log in replacing(results).items():
        steps = results.epochs.loc[results.epochs["key"].isin(log["key"]), "step"].max()
        style = results.looks[label]
        share = 100 * log["step"] / steps
        ax.plot(share, log["fraction"], **style.alone, ms=4, mec="white", mew=0.4, label=label)
    ax.legend(loc="upper right", bbox_to_anchor=(0.8, 1.0))
    ax.set(xlim=(0, 100), ylim=(-0.006, None), xlabel="Training steps done (%)")
    ax.set_ylabel("Drop fraction")
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    return fig


def _published(ax: Axes) -> None:
    """The fraction as arXiv 2106.04533 has it, and as its released code has."""
    share, end = np.linspace(0, 100, len(STEPS)), 80
    ax.axvspan(end, 100, color=LINE, alpha=0.6, lw=0)
    ax.text(90, 0.26, "topology fixed\nin the paper", ha="center", color=MUTED)
    ax.plot(
        share, _curve(cosine(0.5, end=int(0.8 * STEPS[-1]))), color="#9fc3e3", lw=5, solid_capstyle="round",
        label=r"arXiv 2106.04533: $\frac{\alpha}{2}\,(1 + \cos(\pi t / 0.8T))$, $\alpha = 0.5$",
    )  # fmt: skip
    released, before = _curve(cosine(0.5, end=STEPS[-1], stop=0.005)), share <= end
    label = "its released code: over all of $T$, floor 0.005"
    ax.plot(share[before], released[before], color=MUTED, ls=(0, (5, 2)), lw=1.4, label=label)
    ax.plot(share[~before], released[~before], color=MUTED, ls=(0, (1, 2)), lw=1)
