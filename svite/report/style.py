"""How every figure looks: one colour and one marker a method, and files with the same bytes.

Figures are built without pyplot, so drawing one neither opens a window nor leaves state behind.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import ParamSpec
from zlib import crc32

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from scipy.special import stdtrit

P = ParamSpec("P")

INK, MUTED, LINE, PAPER = "#1f2328", "#68707a", "#e3e6ea", "#ffffff"
BLUE, ORANGE, GREEN, RED, PINK, BROWN, ROSE, GREY, YELLOW, SKY = map(to_hex, sns.color_palette("colorblind"))


@dataclass(frozen=True)
class Look:
    """How a method appears in every figure and table."""

    label: str
    color: str
    marker: str
    scale: float = 1.0  # what makes markers of one nominal size look equally large


LOOKS = {
    "dense": Look("Dense", "#4b5158", "*", 1.4),
    "half": Look("Dense, half budget", "#4b5158", "*"),
    "svite": Look("SViTE", BLUE, "o", 1.05),
    "set": Look("SET", ORANGE, "s"),
    "gmp": Look("GMP", GREEN, "^", 1.2),
    "omp": Look("OMP", RED, "D", 0.85),
    "taylor": Look("Taylor", PINK, "v", 1.2),
    "rigl": Look("RigL", SKY, "P"),
    "snip": Look("SNIP", BROWN, "X"),
    "srigl": Look("SRigL", ROSE, "p"),
    "nm": Look("N of 4", GREY, "h"),
    "nm8": Look("N of 8", "#3d6b4f", r"$\otimes$", 1.3),
    "block": Look("Blocks of 16", "#a2563f", r"$\boxplus$", 1.3),
    "s2vite": Look("S2ViTE", "#001c7f", "H", 1.1),
    "group": Look("Group sparsity", "#8c0800", "<", 1.15),
    "layer": Look("Layer sparsity", "#b8850a", "8"),
    "l1": Look("L1 penalty", "#592f0d", r"$\odot$", 1.3),
    "vtp": Look("VTP", "#006374", ">", 1.15),
    "sviteplus": Look("SViTE+", "#7b3aa0", "d", 1.15),
}


def look(method: str) -> Look:
    """The look of a method; one that is not known by name still always gets the same."""
    if method in LOOKS:
        return LOOKS[method]
    mark = crc32(method.encode())
    return Look(method, (YELLOW, BROWN, SKY, ROSE, GREY)[mark % 5], "<>8HdP"[mark % 6])


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


def key(fig: Figure, ax: Axes) -> None:
    """One legend under all panels, of what `ax` holds."""
    handles, labels = ax.get_legend_handles_labels()
    fig.legend(
        handles, labels, loc="outside lower center", ncols=len(labels), columnspacing=1.3,
        handlelength=1.6, handletextpad=0.5,
    )  # fmt: skip


def sizes(shares: Iterable[float]) -> dict[float, float]:
    """Marker size of each kept share, the largest share first: less is left, less is drawn."""
    ordered = sorted(set(shares), reverse=True)
    return dict(zip(ordered, np.linspace(10.0, 4.5, len(ordered)), strict=True))


def legend_beside(ax: Axes, methods: Iterable[str], marks: Mapping[str, float], title: str) -> None:
    """Beside the panels: methods by colour and marker, and what a marker's size means."""
    looks = [look(method) for method in methods]
    named = [ax.plot([], [], m.marker, color=m.color, ms=6 * m.scale, label=m.label)[0] for m in looks]
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
