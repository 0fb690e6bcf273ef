"""The speed card: how fast one model runs in every way that was tried, and how near that is to what is possible."""

from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from svite.report.measured import card
from svite.report.style import BLUE, GREEN, INK, MUTED, ORANGE, PINK, RED, canvas, drawn

BATCHES = (1, 8, 64)
EAGER, DEPLOYED = "eager", "svite.deploy"
SPARSE = r"^(\d+)% sparse$"  # what a model of single zeros is called
RUNTIMES = {"torch.compile": PINK, "ONNX Runtime": ORANGE, "OpenVINO": RED}


def rows(folder: str | Path) -> list[dict[str, Any]]:
    """One row a model and runtime, as people read it; none where the card was not measured."""
    frame = card(folder)
    return [
        {"model": model, "runtime": runtime, **_cells(entries.set_index("batch"))}
        for (model, runtime), entries in frame.groupby(["model", "runtime"], sort=False)
    ]


def _cells(entries: pd.DataFrame) -> dict[str, str]:
    found = {f"speed_{batch}": f"{entries.loc[batch, 'speed']:.2f}×" for batch in BATCHES}
    return found | {
        "milliseconds": f"{entries.loc[1, 'milliseconds']:.0f}",
        "images": f"{entries.loc[64, 'images_a_second']:.1f}",
        "peak": f"{entries.loc[8, 'megabytes_peak']:.0f}",
        "stored": f"{entries.loc[8, 'megabytes_stored']:.1f}",
        "limit": f"{100 * entries.loc[8, 'of_the_limit']:.0f} %",
    }


def figures(folder: str | Path) -> dict[str, Figure]:
    """The figure, by name; none where the card was not measured."""
    return {} if card(folder).empty else {"speed": speed(folder)}


@drawn
def speed(folder: str | Path) -> Figure:
    """Speed over dense against sparsity, end to end, beside other runtimes and the ideal; and distance to the limit."""
    frame = card(folder)
    fig = canvas(
        7.2, 4.2, "What sparsity is worth on the clock",
        "DeiT-Small, one thread, each in turn with the dense model in PyTorch. Left: speed of single\n"
        "zeros, whiskers 95 % intervals. Right: the least time that the machine's own memory and\n"
        "arithmetic allow, as a share of the time taken, at batch 8.",
    )  # fmt: skip
    left, right = fig.subplots(1, 2, width_ratios=(1.25, 1))
    _curves(left, frame)
    _limits(right, frame[frame["batch"] == 8])
    return fig


def _curves(ax: Axes, frame: pd.DataFrame) -> None:
    sparse = frame.assign(sparsity=frame["model"].str.extract(SPARSE)[0].astype(float))
    sparse = sparse[sparse["sparsity"].notna() & (sparse["runtime"] == DEPLOYED)]
    for batch, color, marker in zip(BATCHES, (BLUE, GREEN, INK), "os^", strict=True):
        line = sparse[sparse["batch"] == batch].sort_values("sparsity")
        ax.errorbar(
            line["sparsity"], line["speed"], [line["speed"] - line["low"], line["high"] - line["speed"]],
            color=color, marker=marker, mec="white", mew=0.8, capsize=2, lw=1.6, label=f"batch {batch}",
        )  # fmt: skip
    ideal = [75, 80, 85, 88, 90]
    ax.plot(ideal, [100 / (100 - s) for s in ideal], color=MUTED, lw=1, ls=(0, (4, 2)), label="ideal: 1 / density")
    ax.axhline(1, color=MUTED, lw=0.9)
    dense = frame[(frame["model"] == "dense") & (frame["batch"] == 8)].set_index("runtime")["speed"]
    for runtime, color in RUNTIMES.items():
        if runtime in dense:
            ax.axhline(dense[runtime], color=color, lw=1.1, ls=(0, (1, 1)), label=f"dense, {runtime}")
    ax.set(xlabel="Sparsity of the blocks' weights (%)", ylabel="Speed (dense in PyTorch = 1)", ylim=(0, None))
    ax.legend(loc="upper left", fontsize=7.5)


def _limits(ax: Axes, frame: pd.DataFrame) -> None:
    names = [f"{m}, {r}" if m == "dense" else m for m, r in zip(frame["model"], frame["runtime"], strict=True)]
    chosen = (frame["runtime"] == DEPLOYED) | (frame["model"] == "dense")
    shares = pd.Series((100 * frame["of_the_limit"]).to_numpy(), names)[chosen.to_numpy()][::-1]
    ax.barh(range(len(shares)), shares, color=BLUE, alpha=0.75, height=0.7)
    ax.set_yticks(range(len(shares)), shares.index, size=7.5)
    ax.set_xlabel("Of what the machine allows (%)")
    ax.set_xlim(0, 100)
    ax.grid(axis="y", visible=False)
