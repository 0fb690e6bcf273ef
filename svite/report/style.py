"""How every figure looks: one colour and one marker a setting, and files with the same bytes.

Figures are built without pyplot, so drawing one neither opens a window nor leaves state behind.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import wraps
from itertools import chain, count
from pathlib import Path
from typing import ParamSpec

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import hsv_to_rgb, to_hex
from matplotlib.figure import Figure
from scipy.special import stdtrit

from svite.params.study import Study

P = ParamSpec("P")

INK, MUTED, LINE, PAPER = "#1f2328", "#68707a", "#e3e6ea", "#ffffff"
BLUE, ORANGE, GREEN, RED, PINK, BROWN, ROSE, GREY, YELLOW, SKY = map(to_hex, sns.color_palette("colorblind"))


@dataclass(frozen=True)
class Look:
    """How a setting appears in every figure and table."""

    color: str
    marker: str
    scale: float = 1.0  # what makes markers of one nominal size look equally large

    @property
    def alone(self) -> dict[str, str]:
        """What draws markers without a line, those of mathtext too, which no format string may hold."""
        return {"marker": self.marker, "color": self.color, "ls": "none"}


LOOKS = {  # of the first setting of each method
    "dense": Look("#4b5158", "*", 1.4),
    "svite": Look(BLUE, "o", 1.05),
    "set": Look(ORANGE, "s"),
    "gmp": Look(GREEN, "^", 1.2),
    "omp": Look(RED, "D", 0.85),
    "taylor": Look(PINK, "v", 1.2),
    "rigl": Look(SKY, "P"),
    "granet": Look("#c2185b", r"$\Upsilon$", 1.3),
    "acdc": Look("#6f8f1f", r"$\sim$", 1.3),
    "snip": Look(BROWN, "X"),
    "srigl": Look(ROSE, "p"),
    "nm": Look(GREY, "h"),
    "block": Look("#a2563f", r"$\boxplus$", 1.3),
    "s2vite": Look("#001c7f", "H", 1.1),
    "group": Look("#8c0800", "<", 1.15),
    "layer": Look("#b8850a", "8"),
    "isomorphic": Look("#4a6fa5", r"$\cong$", 1.3),
    "l1": Look("#592f0d", r"$\odot$", 1.3),
    "vtp": Look("#006374", ">", 1.15),
    "sviteplus": Look("#7b3aa0", "d", 1.15),
}


def looks(study: Study) -> dict[str, Look]:
    """The look of each setting, by label: its method's own or, if an earlier setting has that, one that nobody has."""
    methods, own = {setting.method for setting in study.settings}, dict(LOOKS)
    spare = chain((each for method, each in LOOKS.items() if method not in methods), map(_numbered, count(1)))
    return {setting.label: own.pop(setting.method, None) or next(spare) for setting in study.settings}


def _numbered(number: int) -> Look:
    """A look for when all others are taken: a number as a marker, hues as far apart as may be."""
    return Look(to_hex(hsv_to_rgb((0.618 * number % 1, 0.85, 0.6))), f"${number}$", 1.3)


def percent(sparsity: float) -> str:
    """A share as people read it: 0.05 -> '5 %', 0.125 -> '12.5 %'."""
    return f"{round(100 * sparsity, 6):g} %"


def sparsity_of(density: float) -> str:
    """The sparsity that goes with a density, for people: 0.3 -> '70 %'."""
    return percent(1 - density)


THEME = sns.axes_style("white") | {
    "axes.axisbelow": True,
    "axes.edgecolor": "#9aa1a9",
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 9,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "figure.dpi": 110,
    "figure.facecolor": PAPER,
    "figure.titlesize": 11.5,
    "figure.titleweight": "bold",
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8.5,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "hatch.linewidth": 0.6,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "mathtext.fontset": "dejavusans",
    "text.color": INK,
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
}


def drawn(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw in the project's style, whatever the reader's matplotlib is set to."""

    @wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with mpl.rc_context():
            mpl.rcParams.update({**mpl.rcParamsDefault, **THEME})
            return draw(*args, **kwargs)

    return styled


def canvas(width: float, height: float, title: str, subtitle: str) -> Figure:
    """An empty figure, so large in inches, that says above its panels what they show."""
    fig = Figure(figsize=(width, height), layout="constrained")
    above = 0.36 + 0.17 * len(subtitle.splitlines())
    fig.get_layout_engine().set(rect=(0, 0, 1, 1 - above / height), w_pad=0.06, h_pad=0.06)
    left = 0.06 / width
    fig.text(left, 1 - 0.07 / height, title, va="top", size=11.5, weight="bold")
    fig.text(left, 1 - 0.31 / height, subtitle, va="top", color=MUTED, linespacing=1.35)
    return fig


def key(fig: Figure, axes: Iterable[Axes]) -> None:
    """One legend under all panels, of what any of these holds."""
    named = {label: line for ax in axes for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    fig.legend(
        named.values(), named.keys(), loc="outside lower center", ncols=min(len(named), 7), columnspacing=1.3,
        handlelength=1.6, handletextpad=0.5,
    )  # fmt: skip


def sizes(shares: Iterable[float]) -> dict[float, float]:
    """Marker size of each kept share, the largest share first: less is left, less is drawn."""
    ordered = sorted(set(shares), reverse=True)
    return dict(zip(ordered, np.linspace(10.0, 4.5, len(ordered)), strict=True))


def legend_beside(ax: Axes, looks: Mapping[str, Look], marks: Mapping[str, float], title: str) -> None:
    """Beside the panels: settings by colour and marker, and what a marker's size means."""
    named = [ax.plot([], [], **m.alone, ms=6 * m.scale, label=label)[0] for label, m in looks.items()]
    dots = [ax.plot([], [], "o", color=MUTED, ms=size, label=label)[0] for label, size in marks.items()]
    for handles, heading, edge in ((named, "Method", "upper"), (dots, title, "lower")):
        ax.figure.legend(
            handles=handles, title=heading, alignment="left", handletextpad=0.4, loc=f"outside right {edge}"
        )  # fmt: skip


def save(fig: Figure, folder: str | Path, name: str) -> list[Path]:
    """Write the figure as SVG and PNG: the same figure always gives the same bytes."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.svg", folder / f"{name}.png"]
    with mpl.rc_context({"svg.hashsalt": name, "svg.fonttype": "path", "savefig.facecolor": PAPER}):
        fig.savefig(paths[0], metadata={"Date": None, "Creator": None})
        fig.savefig(paths[1], metadata={"Software": None}, dpi=200)
    return paths


def band(frame: pd.DataFrame, by: str, value: str) -> pd.DataFrame:
    """Mean of `value` in each group, and the t interval of that mean (none from one value)."""
    group = frame.groupby(by)[value].agg(["mean", "std", "count"])
    spread = [
        stdtrit(n - 1, 0.975) * std / np.sqrt(n) if n > 1 else 0.0
        for std, n in zip(group["std"], group["count"], strict=True)
    ]
    return group.assign(low=group["mean"] - spread, high=group["mean"] + spread)


def sparsity_axis(ax: Axes, densities: Iterable[float]) -> None:
    """An axis on which equal steps divide the weights left by equal factors: see `place`."""
    ticks = sorted({1.0, *densities}, reverse=True)
    ax.set_xticks([place(density) for density in ticks], [sparsity_of(d) for d in ticks])
    ax.set_xlabel("Sparsity (share of prunable weights that are zero)")


def place(density: float) -> float:
    """Where a density stands on the sparsity axis: how often the weights were halved."""
    return float(-np.log2(density))


def spread(wanted: Iterable[float], gap: float) -> list[float]:
    """Positions as near as possible to the wanted ones and at least `gap` apart."""
    wanted = list(wanted)
    order = np.argsort(wanted, kind="stable")
    blocks: list[list[float]] = []  # [mean of the first member's position, members]
    for index in order:
        blocks.append([wanted[index], 1])
        while len(blocks) > 1 and blocks[-2][0] + gap * blocks[-2][1] > blocks[-1][0]:
            (first, n), (second, m) = blocks[-2:]
            blocks[-2:] = [[(n * first + m * (second - gap * n)) / (n + m), n + m]]
    placed = [start + gap * i for start, n in blocks for i in range(int(n))]
    return [placed[list(order).index(i)] for i in range(len(wanted))]
