"""Figure of selected tokens: which patches of an image the network goes on with."""

from math import isqrt

import numpy as np
from jaxtyping import Bool, Num
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from svite.report.results import Results
from svite.report.style import INK, LINE, canvas, drawn, look, percent

SHARP = 8  # each pixel is drawn as so many, so that no viewer blurs its edges
COLUMNS = 5


@drawn
def kept_tokens(results: Results) -> Figure:
    """Test images under their patches: those whose token is dropped are shaded."""
    images, kept = results.tokens["images"], results.tokens["kept"]
    rows = -(-len(images) // COLUMNS)
    fig = canvas(
        7.2, 0.68 + 1.4 * rows, "Which tokens are kept",
        f"{look('sviteplus').label} with {percent(round(float(kept.mean()), 2))} of the tokens kept: "
        "those of the shaded patches are dropped.",
    )  # fmt: skip
    axes = fig.subplots(rows, COLUMNS, squeeze=False).ravel()
    for ax in axes:
        ax.set_axis_off()
    for ax, image, stays in zip(axes, images, kept, strict=False):
        _image(ax, image, stays)
    return fig


def _image(ax: Axes, image: np.ndarray, stays: np.ndarray) -> None:
    """One image in a frame of width one, dark ink on white, its dropped patches shaded."""
    pixels = np.moveaxis(image, 0, -1).repeat(SHARP, 0).repeat(SHARP, 1).squeeze()
    ax.imshow(pixels, cmap="gray_r", vmin=0, vmax=255, extent=(0, 1, 1, 0), interpolation="none")
    side = isqrt(len(stays))
    for patch in range(len(stays)):
        corner = (patch % side / side, patch // side / side)
        ax.add_patch(Rectangle(corner, 1 / side, 1 / side, fill=False, ec=LINE, lw=0.5))
    for patch in np.flatnonzero(~stays):
        corner = (patch % side / side, patch // side / side)
        ax.add_patch(Rectangle(corner, 1 / side, 1 / side, fc=look("sviteplus").color, alpha=0.55, lw=0))
    ax.add_patch(Rectangle((0, 0), 1, 1, fill=False, ec=INK, lw=0.8))


def ink_kept(images: Num[np.ndarray, "image channel height width"], kept: Bool[np.ndarray, "image patch"]) -> float:
    """The share of all that is not background that lies in kept patches, which are numbered row by row.

    >>> images = np.zeros((1, 1, 2, 2)); images[0, 0, 0] = 3, 1
    >>> ink_kept(images, np.array([[True, False, False, True]]))
    0.75
    """
    count, channels, height, width = images.shape
    side = isqrt(kept.shape[1])
    patches = images.reshape(count, channels, side, height // side, side, width // side).sum((1, 3, 5), dtype=float)
    return float((patches.reshape(count, -1) * kept).sum() / patches.sum())
