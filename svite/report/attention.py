"""Figures of attention: where each head of each layer looks from the centre patch."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from svite.params.run import DENSE
from svite.report.results import Results
from svite.report.style import INK, canvas, drawn, percent, sparsity_of

CELL = 12  # each patch is drawn as so many pixels, so that no viewer blurs its edges
PITCH = 1.1  # from one map to the next, in widths of a map
MOST = 4  # models in a figure


@dataclass(frozen=True)
class Looked:
    """A model and where its heads look: (layer, head, row, column), the mean over so many test images."""

    label: str
    sparsity: str | None
    maps: np.ndarray
    images: int
    validation: float

    @property
    def name(self) -> str:
        """What is written above its maps."""
        return f"{self.label} at {self.sparsity} sparsity" if self.sparsity else self.label

    @property
    def bits(self) -> float:
        """How spread out the attention is: entropy, the mean over heads."""
        share = self.maps.reshape(*self.maps.shape[:2], -1).astype(float)
        share = share / share.sum(-1, keepdims=True)
        return float(-(share * np.log2(np.maximum(share, 1e-12))).sum(-1).mean())


def looked(results: Results) -> list[Looked]:
    """The first seed of each setting and density whose attention is drawn."""
    found = []
    for row in results.attention.drop_duplicates(["label", "density"])[:MOST].itertuples():
        arrays = results.arrays(row.key)
        sparsity = None if row.method == DENSE else sparsity_of(row.density)
        images = int(arrays["attended"][0])
        found.append(Looked(row.label, sparsity, arrays["attention"], images, row.validation_top1))
    return found


def facts(results: Results) -> list[dict[str, Any]]:
    """What the report says of each model: its maps, and their entropy beside that of attention spread evenly."""
    return [
        {
            "name": model.name, "validation": model.validation, "images": model.images, "bits": model.bits,
            "layers": model.maps.shape[0], "heads": model.maps.shape[1], "patches": list(model.maps.shape[2:]),
            "uniform_bits": float(np.log2(np.prod(model.maps.shape[2:]))),
        }
        for model in looked(results)
    ]  # fmt: skip


@drawn
def attention(results: Results) -> Figure:
    """Models side by side, every map on a scale of its own: where a head looks most."""
    return _grids(looked(results), shared=False)


@drawn
def attention_shared(results: Results) -> Figure:
    """Models side by side, all maps on one scale: how much a head looks there."""
    return _grids(looked(results), shared=True)


def _grids(models: list[Looked], shared: bool) -> Figure:
    top = float(np.quantile(np.concatenate([model.maps.ravel() for model in models]), 0.99)) if shared else None
    scale = "All maps share one scale." if shared else "Each map has its own scale: dark is most."
    columns, rows = min(2, len(models)), -(-len(models) // 2)
    tall = max(model.maps.shape[0] / model.maps.shape[1] for model in models)
    images = " to ".join(f"{count:,}" for count in sorted({model.images for model in models}))
    fig = canvas(
        7.2, 1.15 + rows * (0.2 + 6.8 / columns * tall) + 0.6 * shared, "Where the centre patch looks",
        f"Attention probability from the outlined patch to every patch, mean over {images} test images.\n{scale}",
    )  # fmt: skip
    axes = fig.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes:
        ax.set_axis_off()
    for ax, model in zip(axes, models, strict=False):
        ax.set_title(model.name, size=9.5, loc="center", pad=2)
        image = _grid(ax, model.maps, top)
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
