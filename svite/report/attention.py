"""Figures of attention: where each head of each layer looks from the centre patch."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from .results import Results
from .style import INK, canvas, drawn, percent, sparsity_of

CELL = 12  # each patch is drawn as so many pixels, so that no viewer blurs its edges


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
        7.2, 1.05 + 3.5 * layers / heads + 0.55 * shared,
        "Where the centre patch looks: dense beside SViTE",
        "Attention probability from the outlined patch to every patch, mean over 100 test images.\n"
        + scale,
    )  # fmt: skip
    fig.get_layout_engine().set(w_pad=0.025, h_pad=0.025, wspace=0, hspace=0)
    above, below = fig.subfigures(2, height_ratios=(1, 0.16)) if shared else (fig, None)
    for half, (model, name) in zip(above.subfigures(1, 2), names.items(), strict=True):
        image = _half(half, name, maps[model], top)
    if shared:
        _scale(below, image)
    return fig


def _half(half: SubFigure, name: str, maps: np.ndarray, top: float | None) -> AxesImage:
    """All maps of one model: a row a layer, a column a head."""
    half.suptitle(name, size=9.5, weight="bold")
    for layer, row in enumerate(half.subplots(*maps.shape[:2], squeeze=False)):
        row[0].set_ylabel(f"Layer {layer + 1}", size=7)
        for head, ax in enumerate(row):
            image = _panel(ax, maps[layer, head], Normalize(0, top))
            if layer == 0:
                ax.set_title(f"Head {head + 1}", size=7, weight="normal", loc="center", pad=3)
    return image


def _scale(below: SubFigure, image: AxesImage) -> None:
    left, ax, right = below.subplots(1, 3, width_ratios=(1, 3, 1))
    left.set_axis_off(), right.set_axis_off()
    bar = below.colorbar(image, cax=ax, orientation="horizontal", extend="max")
    bar.set_label("Attention probability (darkest: the top 1 % of patches)")
    ax.xaxis.set_major_formatter(lambda share, _: percent(share))
    ax.set_box_aspect(0.03)


def _panel(ax: Axes, values: np.ndarray, norm: Normalize) -> AxesImage:
    """One map, its centre patch outlined."""
    rows, columns = values.shape
    sharp = np.kron(values, np.ones((CELL, CELL)))
    box = (-0.5, columns - 0.5, rows - 0.5, -0.5)
    image = ax.imshow(sharp, cmap="Oranges", norm=norm, extent=box, interpolation="none")
    corner = (columns // 2 - 0.5, rows // 2 - 0.5)
    ax.add_patch(Rectangle(corner, 1, 1, fill=False, ec=INK, lw=1.1))
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    ax.spines[:].set(visible=True, color=INK, linewidth=0.6)
    return image
