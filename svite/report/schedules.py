"""Figures of the two schedules: how fast gradual pruning prunes, how much SViTE replaces."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from svite.report.results import Results
from svite.report.style import INK, LINE, MUTED, canvas, drawn, look, sparsity_of

GUIDES = (2, 4, 8, 10)
RAMP = (0.1, 0.8)  # shares of training at which svite.methods.gmp begins and ends to prune


def cubic(final: float, progress: np.ndarray) -> np.ndarray:
    """Sparsity of gradual pruning at a share of its ramp: s_f (1 - (1 - p)^3), from s_i = 0."""
    return final * (1 - (1 - np.clip(progress, 0, 1)) ** 3)


def cosine(progress: np.ndarray, alpha: float = 0.5, end: float = 0.8) -> np.ndarray:
    """The paper's drop fraction at a share of training: from alpha to zero at `end`."""
    return np.where(progress < end, alpha / 2 * (1 + np.cos(np.pi * progress / end)), 0.0)


def floored(progress: np.ndarray, alpha: float = 0.5, floor: float = 0.005) -> np.ndarray:
    """The released code's drop fraction: annealed over all of training, down to a floor."""
    return floor + (alpha - floor) / 2 * (1 + np.cos(np.pi * progress))


@drawn
def gradual(results: Results) -> Figure:
    """The gradual pruning curve with its compression guides, and what GMP runs logged."""
    fig = canvas(
        7.2, 4.3, "Gradual magnitude pruning: computed and measured",
        r"Lines: computed, $s(n) = s_f\,(1 - (1 - n/100)^3)$. Markers: logged by this study's GMP "
        "runs.\nDotted: where the curve to 90 % has left 1/2, 1/4, 1/8 and 1/10 of the weights.",
    )  # fmt: skip
    ax = fig.subplots()
    steps = np.linspace(0, 100, 401)
    ax.plot(steps, cubic(0.9, steps / 100), color="#9fb8d6", lw=5, solid_capstyle="round")
    _guides(ax)
    style = look("gmp")
    for density, log in _first_seed(results, "gmp").groupby("target_density", sort=False):
        progress = ramp(log["step"].to_numpy(), _steps(results, log))
        ax.plot(steps, cubic(1 - density, steps / 100), color=style.color, lw=0.9, alpha=0.8)
        ax.plot(
            100 * progress, 1 - log["density"], style.marker, color=style.color, ms=4.2,
            mec="white", mew=0.5,
        )  # fmt: skip
        ax.annotate(
            f"to {sparsity_of(density)}", (100, 1 - density), xytext=(8, 0), va="center",
            textcoords="offset points", color=style.color, weight="bold", annotation_clip=False,
        )  # fmt: skip
    ax.set(xlim=(-1, 101), ylim=(0, 1), xlabel="Pruning step (share of the ramp, %)")
    ax.set_ylabel("Sparsity")
    ax.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    return fig


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


def _first_seed(results: Results, method: str) -> pd.DataFrame:
    """The updates of one seed: a schedule is the same for every seed."""
    updates = results.updates[results.updates["method"] == method]
    return updates[updates["seed"] == updates["seed"].min()]


def _steps(results: Results, log: pd.DataFrame) -> int:
    """Optimizer steps of the whole run that logged these updates."""
    return int(results.epochs.loc[results.epochs["key"].isin(log["key"]), "step"].max())


def ramp(step: np.ndarray, steps: int) -> np.ndarray:
    """The share of GMP's ramp behind it at a step of a run of so many steps."""
    begin, end = (max(int(share * steps), 1) for share in RAMP)
    return np.clip((step - begin) / max(end - begin, 1), 0, 1)


@drawn
def drop_fraction(results: Results) -> Figure:
    """The share of living weights replaced at an update: paper, released code, this study."""
    fig = canvas(
        7.2, 4.1, "Drop fraction: the share of living weights that an update replaces",
        "The paper's cosine reaches zero at 80 % of training, after which the topology rests; the "
        "released code's\nstands at 5 % there.",
    )  # fmt: skip
    ax = fig.subplots()
    share, end = np.linspace(0, 1, 401), 0.8
    style = look("svite")
    ax.axvspan(100 * end, 100, color=LINE, alpha=0.6, lw=0)
    ax.text(90, 0.26, "topology\nfixed", ha="center", color=MUTED)
    before = share <= end
    ax.plot(
        100 * share, cosine(share), color="#9fc3e3", lw=5, solid_capstyle="round",
        label=r"paper: $\frac{\alpha}{2}\,(1 + \cos(\pi t / 0.8T))$, $\alpha = 0.5$",
    )  # fmt: skip
    ax.plot(
        100 * share[before], floored(share[before]), color=MUTED, ls=(0, (5, 2)), lw=1.4,
        label="released code: over all of $T$, floor 0.005",
    )  # fmt: skip
    ax.plot(100 * share[~before], floored(share[~before]), color=MUTED, ls=(0, (1, 2)), lw=1)
    log = _first_seed(results, "svite")
    log = log[log["target_density"] == log["target_density"].max()]
    if len(log):
        share = log["step"] / _steps(results, log)
        label = "logged by this study's SViTE runs"
        ax.plot(100 * share, log["fraction"], style.marker, color=style.color, ms=4, mec="white", mew=0.4, label=label)
    ax.legend(loc="upper right", bbox_to_anchor=(0.8, 1.0))
    ax.set(xlim=(0, 100), ylim=(-0.006, 0.52), xlabel="Training steps done (%)")
    ax.set_ylabel("Drop fraction")
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    return fig
