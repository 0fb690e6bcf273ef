"""Figure of selected tokens: which patches of an image the network goes on with."""

from dataclasses import dataclass
from math import isqrt

import numpy as np
from jaxtyping import Bool, Num
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from svite.report.results import Results
from svite.report.style import INK, LINE, canvas, drawn, percent

SHARP = 224  # pixels that an image is drawn with, at least, so that no viewer blurs its edges
COLUMNS = 5
MOST = 10  # images


@dataclass(frozen=True)
class Selection:
    """Which patches of each of the sample images (image, patch), row by row, the model of a setting goes on with."""

    label: str
    kept: np.ndarray


def selection(results: Results) -> Selection | None:
    """Of all models that select tokens the first that keeps the fewest; None where there is none."""
    found = []
    for planned in results.study.among("weights", "structures"):
        arrays = results.arrays(planned.key)
        if "kept" in arrays:
            found.append(Selection(planned.label, arrays["kept"]))
    return min(found, key=lambda each: each.kept.mean(), default=None)


@drawn
def kept_tokens(results: Results) -> Figure:
    """Test images under their patches: those whose token is dropped are shaded."""
    chosen, images = selection(results), results.test["samples"][:MOST]
    rows = -(-len(images) // COLUMNS)
    fig = canvas(
        7.2, 0.68 + 1.4 * rows, "Which tokens are kept",
        f"{chosen.label} with {percent(round(float(chosen.kept.mean()), 2))} of the tokens kept: "
        "those of the shaded patches are dropped.",
    )  # fmt: skip
    axes = fig.subplots(rows, COLUMNS, squeeze=False).ravel()
    for ax in axes:
        ax.set_axis_off()
    for ax, image, stays in zip(axes, images, chosen.kept, strict=False):
        _image(ax, image, stays, results.looks[chosen.label].color)
    return fig


def _image(ax: Axes, image: np.ndarray, stays: np.ndarray, color: str) -> None:
    """One image in a frame of width one, its dropped patches shaded."""
    times = -(-SHARP // image.shape[-1])
    pixels = np.moveaxis(image, 0, -1).repeat(times, 0).repeat(times, 1)
    pixels = pixels.repeat(3, 2) if pixels.shape[2] == 1 else pixels
    ax.imshow(pixels, extent=(0, 1, 1, 0), interpolation="none")
    side = isqrt(len(stays))
    for patch in range(len(stays)):
        corner = (patch % side / side, patch // side / side)
        ax.add_patch(Rectangle(corner, 1 / side, 1 / side, fill=False, ec=LINE, lw=0.5))
    for patch in np.flatnonzero(~stays):
        corner = (patch % side / side, patch // side / side)
        ax.add_patch(Rectangle(corner, 1 / side, 1 / side, fc=color, alpha=0.55, lw=0))
    ax.add_patch(Rectangle((0, 0), 1, 1, fill=False, ec=INK, lw=0.8))


def brightness_kept(
    images: Num[np.ndarray, "image channel height width"], kept: Bool[np.ndarray, "image patch"]
) -> float:
    """The share of the sum of all pixels that lies in kept patches, which are numbered row by row.

    >>> images = np.zeros((1, 1, 2, 2)); images[0, 0, 0] = 3, 1
    >>> brightness_kept(images, np.array([[True, False, False, True]]))
    0.75
    """
    count, channels, height, width = images.shape
    side = isqrt(kept.shape[1])
    patches = images.reshape(count, channels, side, height // side, side, width // side).sum((1, 3, 5), dtype=float)
    return float((patches.reshape(count, -1) * kept).sum() / patches.sum())
