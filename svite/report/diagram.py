"""A drawing of the train-prune-grow cycle: a sparse network that rewires itself as it trains."""

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from svite.report.style import BLUE, GREEN, INK, MUTED, RED, canvas, drawn
from svite.sparsity.schedule import cosine

SIZES = (4, 5, 3)  # neurons in each layer of the little network
Edge = tuple[int, int, int]  # layer, from, to
Point = tuple[float, float]


@dataclass(frozen=True)
class Stage:
    """One picture of the cycle: what is active, what is about to be pruned, what has just been grown."""

    title: str
    words: str
    alive: dict[Edge, float]
    pruned: frozenset[Edge] = frozenset()
    grown: frozenset[Edge] = frozenset()


def _stages() -> list[Stage]:
    """The same small network before and after one turn of the cycle; always as many edges."""
    generator = np.random.default_rng(4)
    edges = [(k, i, j) for k in (0, 1) for i in range(SIZES[k]) for j in range(SIZES[k + 1])]
    order = generator.permutation(len(edges))
    start = {edges[i]: 0.45 for i in order[:16]}
    trained = {edge: float(w) for edge, w in zip(start, generator.beta(1, 1.3, 16), strict=True)}
    weakest = frozenset(sorted(trained, key=trained.get)[:4])
    kept = {edge: w for edge, w in trained.items() if edge not in weakest}
    grown = frozenset(edges[i] for i in order[16:20])
    return [
        Stage("Start sparse", "random weights are active,\nERK says how many", start),
        Stage("Train", "ΔT steps on the\nactive weights only", trained),
        Stage("Prune", "the smallest magnitudes\ngo: f of those active", trained, weakest),
        Stage("Grow", "as many come, at zero,\nwhere gradients are largest",
              kept | {edge: 0.3 for edge in grown}, grown=grown),
    ]  # fmt: skip


@drawn
def cycle() -> Figure:
    """Train, prune, grow: the cycle above, the whole run as a timeline below."""
    fig = canvas(
        7.2, 4.75, "Sparse from start to end: train, prune, grow, and again",
        "The number of active weights never changes; which weights are active does.",
    )  # fmt: skip
    top, bottom = fig.subplots(2, height_ratios=(2.75, 1))
    for index, stage in enumerate(_stages()):
        _card(top, 2.5 * index, stage)
    for index, color in enumerate((MUTED, RED, GREEN)):
        _arrow(top, (2.5 * index + 2.02, 1.15), (2.5 * index + 2.48, 1.15), color)
    top.plot((8.5, 8.5, 3.5, 3.5), (-0.95, -1.25, -1.25, -1.2), color=BLUE, lw=1.8)
    _arrow(top, (3.5, -1.25), (3.5, -0.92), BLUE)
    top.text(6, -1.55, "again after every ΔT steps", ha="center", va="center", color=BLUE,
             weight="bold", bbox={"fc": "white", "ec": "none", "pad": 3})  # fmt: skip
    _key(top)
    top.set(xlim=(-0.05, 9.55), ylim=(-2.25, 2.75))
    top.axis("off")
    _timeline(bottom)
    return fig


def _card(ax: Axes, left: float, stage: Stage) -> None:
    box = FancyBboxPatch((left + 0.08, -0.85), 1.84, 3.5, boxstyle="round,pad=0.05,rounding_size=0.14",
                         fc="#f6f7f9", ec="#d5d9de", lw=0.8)  # fmt: skip
    ax.add_patch(box)
    ax.text(left + 1, 2.38, stage.title, ha="center", va="center", weight="bold", size=10)
    ax.text(left + 1, -0.5, stage.words, ha="center", va="center", size=6.7, color=INK)
    for edge, weight in stage.alive.items():
        _edge(ax, left, edge, weight, stage)
    for layer, size in enumerate(SIZES):
        x, y = zip(*(_neuron(left, layer, i) for i in range(size)), strict=True)
        ax.plot(x, y, "o", ms=7, mfc="white", mec=INK, mew=1.0, zorder=4)


def _edge(ax: Axes, left: float, edge: Edge, weight: float, stage: Stage) -> None:
    layer, source, target = edge
    x, y = zip(_neuron(left, layer, source), _neuron(left, layer + 1, target), strict=True)
    if edge in stage.pruned:
        ax.plot(x, y, color=RED, lw=1.3, ls=(0, (2, 1.4)), zorder=3)
    elif edge in stage.grown:
        ax.plot(x, y, color=GREEN, lw=1.9, zorder=3)
    else:
        ax.plot(x, y, color=INK, lw=0.5 + 2.4 * weight, alpha=0.85, zorder=2)


def _neuron(left: float, layer: int, index: int) -> tuple[float, float]:
    return left + 0.32 + 0.68 * layer, 1.05 + 0.48 * (index - (SIZES[layer] - 1) / 2)


def _arrow(ax: Axes, start: Point, end: Point, color: str) -> None:
    style = "-|>,head_length=5,head_width=3"
    arrow = FancyArrowPatch(start, end, arrowstyle=style, color=color, lw=1.8, shrinkA=0, shrinkB=0,
                            mutation_scale=1)  # fmt: skip
    ax.add_patch(arrow)


def _key(ax: Axes) -> None:
    """What the three kinds of line mean."""
    kinds = ((INK, "-", "active (width: magnitude)"), (RED, (0, (2, 1.4)), "pruned"), (GREEN, "-", "grown"))
    for x, (color, dashes, words) in zip((2.3, 5.75, 7.4), kinds, strict=True):
        ax.plot((x, x + 0.42), (-2.1, -2.1), color=color, ls=dashes, lw=2)
        ax.text(x + 0.54, -2.1, words, va="center", size=8)


def _timeline(ax: Axes) -> None:
    """A whole run: each bar an update, as high as the share of active weights it replaces."""
    updates, fraction = np.arange(26, 800, 26), cosine(0.5, end=800)
    heights = np.array([fraction(int(step)) for step in updates])
    ax.bar(updates / 10, heights, width=1.1, color=GREEN, alpha=0.9, lw=0)
    ax.bar(updates / 10, -heights, width=1.1, color=RED, alpha=0.9, lw=0)
    ax.axhline(0, color=INK, lw=1.2)
    ax.axvspan(80, 100, color="#eef0f3", lw=0)
    ax.text(90, 0, "topology fixed,\nweights go on training", ha="center", va="center", size=7.5,
            color=MUTED, bbox={"fc": "#eef0f3", "ec": "none", "pad": 1})  # fmt: skip
    ax.text(60, 0.3, "grown: f of the active", color=GREEN, weight="bold", size=8)
    ax.text(60, -0.4, "pruned: as many", color=RED, weight="bold", size=8)
    ax.set(xlim=(-0.5, 100), ylim=(-0.56, 0.56), yticks=[], xlabel="Training steps")
    ax.set_xticks([0, 80, 100], ["0", "0.8 T", "T"])
    ax.set_title("The whole run: each bar is one update, and the drop fraction f falls as a cosine",
                 weight="normal", size=8.5)  # fmt: skip
    ax.grid(False)
    ax.spines["left"].set_visible(False)
