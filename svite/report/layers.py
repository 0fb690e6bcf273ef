"""Figure of the layers: the density that each was asked to have, and what each setting gave it."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from svite.report.results import Results
from svite.report.style import INK, canvas, drawn, key, sparsity_of
from svite.report.text import mean


@drawn
def layers(results: Results) -> Figure:
    """The density that each layer was asked to have, and what each setting gave it."""
    count = len(results.densities)
    fig = canvas(
        7.2, 1.5 + 1.02 * count, "Density layer by layer",
        f"Density: the share of a layer's weights that are active at the end. {mean(results.runs)}.\n"
        "Grey: what was asked of each layer, where a setting asks more of some than of others.",
    )  # fmt: skip
    axes = fig.subplots(count, sharex=True, squeeze=False)[:, 0]
    for ax, density in zip(axes, results.densities, strict=True):
        _layer_panel(ax, results, density)
    units = [_short(unit) for unit in results.layers["unit"].unique()]
    axes[-1].set_xticks(range(len(units)), units, rotation=90, size=min(8.0, 180 / len(units)))
    fig.supylabel("Density (log scale)", size=9, color=INK)
    key(fig, axes)
    return fig


def _layer_panel(ax: Axes, results: Results, density: float) -> None:
    here = results.layers[results.layers["target_density"] == density]
    units = results.layers["unit"].unique()
    spots, low = np.arange(len(units)), here.loc[here["achieved"] > 0, "achieved"].min()
    for asked in _asked(here):
        ax.hlines(asked.reindex(units), spots - 0.45, spots + 0.45, color="#c9ced4", lw=5, label="Asked")
        low = min(low, asked.min())
    labels = [label for label in results.labels if label in set(here["label"])]
    for index, label in enumerate(labels):
        style, shift = results.looks[label], 0.14 * (index - (len(labels) - 1) / 2)
        left = here[here["label"] == label].groupby("unit", sort=False)["achieved"].mean().reindex(units)
        ax.plot(
            spots + shift, left.to_numpy(), **style.alone, ms=4.2, mec="white",
            mew=0.5, label=label,
        )  # fmt: skip
    ax.set_title(f"{sparsity_of(density)} sparsity")
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if low > 0.04 else (1, 3), numticks=12))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
    ax.set_ylim(0.8 * low, 1.3)
    ax.set_xlim(-0.8, len(units) - 0.2)
    ax.grid(axis="x", visible=False)


def _asked(layers: pd.DataFrame) -> list[pd.Series]:
    """What was asked of each layer, where that differs between layers; what several settings ask once."""
    found: list[pd.Series] = []
    for _, mine in layers.groupby("label", sort=False):
        asked = mine.groupby("unit", sort=False)["target"].mean()
        if asked.nunique() > 1 and not any(asked.round(4).equals(other.round(4)) for other in found):
            found.append(asked)
    return found


def _short(unit: str) -> str:
    """A layer's name as an axis has room for it: blocks.2.mlp.fc1.weight -> 3 fc1."""
    parts = unit.removesuffix(".weight").split(".")
    if parts[0] == "blocks":
        return f"{int(parts[1]) + 1} {parts[-1]}"
    return {"patch_embed": "patches", "head": "classifier"}.get(parts[0], parts[0])
