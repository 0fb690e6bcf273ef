"""`python -m benchmarks.plan`: 300 epochs of DeiT-Base on paper, from what was measured and arithmetic that is shown.

Writes the tables of docs/scale.md. Each number is a sum that the table states, of the model's own counts and of claims
of the benchmark's part `scale`.
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import memory, scale
from svite.params.recipe import read
from svite.params.run import Training
from svite.report.text import fill
from svite.sparsity.layers import elements
from svite.train.loop import SECONDS_BETWEEN_CHECKPOINTS
from svite.train.models import build
from svite.vit.cost import macs

RECIPE = Path(__file__).parents[1] / "recipes/deit_base_imagenet.yaml"
EPOCHS, IMAGES = 300, 1_281_167
TAR = 147_897_477_120  # bytes of ILSVRC2012_img_train.tar
RATE = 100e12  # operations a second that a GPU sustains in bf16: assumed, not measured
SETTINGS = {"8 GPUs": 8, "4 x 8 GPUs": 32}
MARKS = ("<!-- plan -->", "<!-- /plan -->")

Row = tuple[str, str, Sequence[str]]


@dataclass(frozen=True)
class Measured:
    """What the benchmark found of the model, a value each."""

    masks: float  # bytes a parameter, between updates
    peak: float  # bytes a parameter, during an update
    update: float  # seconds on one core
    stored: float  # bytes of a checkpoint
    written: float  # seconds to write it
    kept: float  # bytes an image that autograd keeps

    @classmethod
    def read(cls, path: str | Path) -> "Measured":
        """From a file that `python -m benchmarks` wrote.

        Raises ValueError where it lacks one of them.
        """
        claims = json.loads(Path(path).read_text())["claims"]
        found = {claim["name"]: claim["value"] for claim in claims if claim["part"] == "scale"}
        parts = (memory.HELD, memory.MOMENT, scale.UPDATE, scale.STORED, scale.WRITTEN, scale.KEPT)
        values = [next((found[name] for name in found if part in name), None) for part in parts]
        if None in values:
            missing = parts[values.index(None)]
            raise ValueError(f"{path} does not say '{missing}'; run `python -m benchmarks --only scale`.")
        return cls(*values)


@dataclass(frozen=True)
class Planned:
    """What is counted of the model, and what its recipe says."""

    parameters: int
    prunable: int
    macs: float
    batch: int
    epochs: int
    interval: int

    @classmethod
    def read(cls, path: str | Path = RECIPE) -> "Planned":
        """A training's parameters, with the epochs of the plan."""
        training = read(path, Training, [f"recipe.epochs={EPOCHS}"])
        model, recipe = build(training.model), training.recipe
        total = sum(parameter.numel() for parameter in model.parameters())
        prunable = sum(unit.size for unit in elements(model))
        return cls(total, prunable, macs(model).total(), recipe.batch, recipe.epochs, recipe.interval)

    @property
    def steps(self) -> int:
        """Optimizer steps of the run."""
        return IMAGES // self.batch * self.epochs

    @property
    def updates(self) -> int:
        """Topology updates: SViTE's end after 80 % of the steps."""
        return int(0.8 * self.steps) // self.interval


def held(run: Planned, found: Measured) -> list[Row]:
    """Bytes on each GPU while it trains: under DDP in every setting, then under FSDP2."""
    p, gpus, whole = run.parameters, list(SETTINGS.values()), [1] * len(SETTINGS)
    images = [run.batch // n for n in gpus]

    def dealt(count: float) -> list[float]:
        return [count * p / n for n in (*whole, *gpus)]

    masks = [found.masks * p for _ in gpus] + [(1 / n + 2 / 8) * p for n in gpus]
    parts = [
        ("weights, fp32", "4 P, FSDP2: / n", dealt(4)),
        ("their gradients", "4 P, FSDP2: / n", dealt(4)),
        ("AdamW's two moments", "8 P, FSDP2: / n", dealt(8)),
        ("average of the weights (`recipe.ema`)", "4 P, FSDP2: / n", dealt(4)),
        ("DDP's buckets of gradients", "4 P", [4.0 * p] * len(gpus) + [0.0] * len(gpus)),
        ("weights cast to bf16, kept for the backward pass", "2 P", [2.0 * p] * 2 * len(gpus)),
        ("sparsifier, between updates", f"measured: {found.masks:.2f} P, FSDP2: P / n and two bits a weight", masks),
        (
            f"activations under bf16 autocast, {' or '.join(map(str, images))} images",
            f"measured: {found.kept / 1e6:.1f} MB an image",
            [found.kept * count for count in images * 2],
        ),
    ]
    totals = [sum(values) for values in zip(*(values for _, _, values in parts), strict=True)]
    return [(name, how, list(map(size, values))) for name, how, values in [*parts, ("**all**", "", totals)]]


def moved(run: Planned) -> list[Row]:
    """Bytes that each GPU sends or gets in a step."""
    gpus, weights = list(SETTINGS.values()), 4 * run.parameters
    image, pixels = TAR / IMAGES, 4 * 3 * 224 * 224
    rows = [
        ("DDP: gradients, all-reduced", "2 (n - 1)/n x 4 P", [2 * (n - 1) / n * weights for n in gpus]),
        ("FSDP2: weights twice, gradients once", "3 (n - 1)/n x 4 P", [3 * (n - 1) / n * weights for n in gpus]),
        ("masks", "0: every rank chooses alike", [0.0 for _ in gpus]),
        ("images read", f"{run.batch} / n x {size(image)}, the mean of all", [run.batch / n * image for n in gpus]),
        ("images to the GPU, fp32", f"{run.batch} / n x 4 x 3 x 224²", [run.batch / n * pixels for n in gpus]),
    ]
    return [(name, how, list(map(size, values))) for name, how, values in rows]


def took(run: Planned) -> list[Row]:
    """Steps, operations and hours of the whole run at the assumed rate, and what has to keep up with it."""
    gpus = list(SETTINGS.values())
    step = 6 * run.macs * run.batch
    seconds = [step / n / RATE for n in gpus]
    wide = [2 * (n - 1) / n * 4 * run.parameters / s for n, s in zip(gpus, seconds, strict=True)]
    return [
        ("steps", f"{IMAGES:,} // {run.batch} x {run.epochs}", [f"{run.steps:,}" for _ in gpus]),
        (
            "operations a step",
            f"2 x 3 x {run.macs / 1e9:.2f} G MACs x {run.batch}",
            [f"{step / 1e12:.1f} T" for _ in gpus],
        ),
        (f"a step, if a GPU does {RATE / 1e12:.0f} T a second", "assumed", [f"{s:.3f} s" for s in seconds]),
        ("the run at that rate", "steps x a step", [f"{run.steps * s / 3600:.1f} h" for s in seconds]),
        ("images to decode", f"{run.batch} / a step", [f"{run.batch / s:,.0f} a second" for s in seconds]),
        (
            "bandwidth at which DDP's all-reduce lasts a step",
            "its bytes / a step",
            [f"{size(w)} a second" for w in wide],
        ),
    ]


def added(run: Planned, found: Measured) -> list[Row]:
    """What topology updates and checkpoints add, the same in every setting."""
    peak, whole = found.peak * run.parameters, found.stored + 4 * run.parameters
    rows = [
        ("updates of the run", f"0.8 x steps // {run.interval:,}", str(run.updates)),
        ("all of them", f"measured: {found.update:.2f} s each, one CPU core", f"{run.updates * found.update:.0f} s"),
        ("memory of one, when no activations are there", f"measured: {found.peak:.2f} P", size(peak)),
        ("FSDP2: two scores gathered at one", "2 x 4 x prunable", size(8 * run.prunable)),
        ("a checkpoint; two are kept", f"measured: {size(found.stored)}, and 4 P for the average", size(whole)),
        (f"writing {size(found.stored)} beside training", "measured, on this disk", f"{found.written:.1f} s"),
        (
            "to the disk, all in all",
            f"a checkpoint each {SECONDS_BETWEEN_CHECKPOINTS:.0f} s",
            f"{size(whole / SECONDS_BETWEEN_CHECKPOINTS)} a second",
        ),
    ]
    return [(name, how, [value]) for name, how, value in rows]


def size(count: float) -> str:
    """Bytes as people read them.

    >>> size(346_270_624), size(8_501_832_000), size(0)
    ('346 MB', '8.50 GB', '0')
    """
    if count >= 1e9:
        return f"{count / 1e9:.2f} GB"
    return f"{count / 1e6:.0f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB" if count else "0"


def table(heads: Iterable[str], rows: Iterable[Row]) -> str:
    """Markdown, numbers to the right."""
    heads = list(heads)
    lines = [heads, [":--", ":--", *["--:"] * (len(heads) - 2)], *([name, how, *cells] for name, how, cells in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def markdown(run: Planned, found: Measured) -> str:
    """The tables."""
    ways = [f"{way}, {setting}" for way in ("DDP", "FSDP2") for setting in SETTINGS]
    parts = [
        f"P = {run.parameters:,} parameters, {run.prunable:,} of them prunable; n GPUs.",
        table(["On each GPU", "bytes", *ways], held(run, found)),
        table(["A step, each GPU", "bytes", *SETTINGS], moved(run)),
        table(["The run", "", *SETTINGS], took(run)),
        table(["Beside it", "", "any"], added(run, found)),
    ]
    return "\n\n".join(parts)


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plan", description="The tables of docs/scale.md.")
    parser.add_argument("--measured", type=Path, default=Path("reports/bench.json"), help="what the benchmark found")
    parser.add_argument("--page", type=Path, default=Path("docs/scale.md"), help="where the tables go")
    arguments = parser.parse_args()
    found = Measured.read(arguments.measured)
    fill(arguments.page, MARKS, markdown(Planned.read(), found))


if __name__ == "__main__":
    main()
