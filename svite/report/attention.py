"""Figures of attention: where each head of each layer looks from the centre patch."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from svite.report.results import Results
from svite.report.style import INK, canvas, drawn, percent, sparsity_of

CELL = 12  # each patch is drawn as so many pixels, so that no viewer blurs its edges
PITCH = 1.1  # from one map to the next, in widths of a map


@drawn
def attention(results: Results) -> Figure:
    """Dense beside SViTE, every map on a scale of its own: where a head looks most."""
    return _grids(results, shared=False)


@drawn
def attention_shared(results: Results) -> Figure:
    """Dense beside SViTE, all maps on one scale: how much a head looks there."""
    return _grids(results, shared=True)


def _grids(results: Results, shared: bool) -> Figure:
    maps, density = results.attention, results.pair["pair-svite"]["density"]
    names = {"pair-dense": "Dense", "pair-svite": f"SViTE at {sparsity_of(density)} sparsity"}
    layers, heads = next(iter(maps.values())).shape[:2]
    top = float(np.quantile(np.stack(list(maps.values())), 0.99)) if shared else None
    scale = "All maps share one scale." if shared else "Each map has its own scale: dark is most."
    fig = canvas(
        7.2, 1.15 + 3.4 * layers / heads + 0.6 * shared,
        "Where the centre patch looks: dense beside SViTE",
        "Attention probability from the outlined patch to every patch, mean over test images.\n" + scale,
    )  # fmt: skip
    axes = fig.subplots(1, 2)
    for ax, (model, name) in zip(axes, names.items(), strict=True):
        ax.set_title(name, size=9.5, loc="center", pad=2)
        image = _grid(ax, maps[model], top)
    if shared:
        bar = fig.colorbar(image, ax=axes, location="bottom", extend="max", shrink=0.6, aspect=45)
        bar.set_label("Attention probability (darkest: the top 1 % of patches)")
        bar.ax.xaxis.set_major_formatter(lambda share, _: percent(share))
    return fig


def _grid(ax: Axes, maps: np.ndarray, top: float | None) -> AxesImage:
    """All maps of one model: a row a layer, a column a head."""
    layers, heads = maps.shape[:2]
    for layer in range(layers):
        middle = layer * PITCH + 0.5
        ax.text(-0.08, middle, f"Layer {layer + 1}", size=7, rotation=90, ha="right", va="center")
        for head in range(heads):
            image = _map(ax, maps[layer, head], (head * PITCH, layer * PITCH), Normalize(0, top))
    for head in range(heads):
        ax.text(head * PITCH + 0.5, -0.06, f"Head {head + 1}", size=7, ha="center", va="bottom")
    ax.set(xlim=(-0.3, heads * PITCH - 0.07), ylim=(layers * PITCH - 0.07, -0.3), aspect="equal")
    ax.set_axis_off()
    return image


def _map(ax: Axes, values: np.ndarray, corner: tuple[float, float], norm: Normalize) -> AxesImage:
    """One map in a frame of width one, its centre patch outlined."""
    (rows, columns), (left, top) = values.shape, corner
    sharp = np.kron(values, np.ones((CELL, CELL)))
    box = (left, left + 1, top + 1, top)
    image = ax.imshow(sharp, cmap="Oranges", norm=norm, extent=box, interpolation="none")
    patch = (left + columns // 2 / columns, top + rows // 2 / rows)
    ax.add_patch(Rectangle(patch, 1 / columns, 1 / rows, fill=False, ec=INK, lw=1.1))
    ax.add_patch(Rectangle(corner, 1, 1, fill=False, ec=INK, lw=0.6))
    return image
