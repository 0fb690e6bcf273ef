"""`python -m benchmarks.plan`: 300 epochs of DeiT-Base on paper, from what was measured and arithmetic that is shown.

Writes the tables of docs/scale.md. Each number is a sum that the table states, of the model's own counts and of claims
of the benchmark's part `scale`.
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import timm
from torch import nn

from benchmarks import memory, scale
from svite.report.text import fill
from svite.sparsity.layers import elements
from svite.vit.cost import macs

MODEL = "deit_base_patch16_224"
EPOCHS, BATCH, IMAGES = 300, 1024, 1_281_167
TAR = 147_897_477_120  # bytes of ILSVRC2012_img_train.tar
UPDATES = 80  # one after each 1 % of training, until 80 % of it
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
class Model:
    """What is counted of the model."""

    parameters: int
    prunable: int
    macs: float

    @classmethod
    def of(cls, model: nn.Module) -> "Model":
        """Count it."""
        total = sum(parameter.numel() for parameter in model.parameters())
        return cls(total, sum(unit.size for unit in elements(model, None)), macs(model).total())


def held(model: Model, found: Measured) -> list[Row]:
    """Bytes on each GPU while it trains: under DDP in every setting, then under FSDP2."""
    p, gpus, whole = model.parameters, list(SETTINGS.values()), [1] * len(SETTINGS)
    images = [BATCH // n for n in gpus]

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


def moved(model: Model) -> list[Row]:
    """Bytes that each GPU sends or gets in a step."""
    p, gpus = model.parameters, list(SETTINGS.values())
    around = [(n - 1) / n for n in gpus]
    image, pixels = TAR / IMAGES, 3 * 224 * 224
    rows = [
        ("DDP: gradients, all-reduced", "2 (n - 1)/n x 4 P", [2 * r * 4 * p for r in around]),
        ("FSDP2: weights gathered twice, gradients scattered", "3 (n - 1)/n x 4 P", [3 * r * 4 * p for r in around]),
        ("masks", "0: every rank chooses alike", [0.0] * len(gpus)),
        (
            "images read",
            f"{BATCH} / n x {size(image)}, the mean of the training set",
            [BATCH / n * image for n in gpus],
        ),
        ("images to the GPU, one byte a value", f"{BATCH} / n x 3 x 224 x 224", [BATCH / n * pixels for n in gpus]),
    ]
    return [(name, how, list(map(size, values))) for name, how, values in rows]


def took(model: Model) -> list[Row]:
    """Steps, operations and hours of the whole run at the assumed rate, and what has to keep up with it."""
    steps, gpus = IMAGES // BATCH * EPOCHS, SETTINGS.values()
    step = 6 * model.macs * BATCH
    seconds = [step / n / RATE for n in gpus]
    sent = [2 * (n - 1) / n * 4 * model.parameters for n in gpus]
    both = len(SETTINGS)
    return [
        ("steps", f"{IMAGES:,} // {BATCH} x {EPOCHS}", [f"{steps:,}"] * both),
        ("operations a step", f"2 x 3 x {model.macs / 1e9:.2f} G MACs x {BATCH}", [f"{step / 1e12:.1f} T"] * both),
        (f"a step, if a GPU does {RATE / 1e12:.0f} T a second", "assumed", [f"{s:.3f} s" for s in seconds]),
        ("the run at that rate", "steps x a step", [f"{steps * s / 3600:.1f} h" for s in seconds]),
        ("images to decode, all nodes together", f"{BATCH} / a step", [f"{BATCH / s:,.0f} a second" for s in seconds]),
        (
            "bandwidth at which DDP's all-reduce takes as long as a step",
            "its bytes / a step",
            [f"{b / s / 1e9:.1f} GB a second" for b, s in zip(sent, seconds, strict=True)],
        ),
    ]


def added(model: Model, found: Measured) -> list[Row]:
    """What topology updates and checkpoints add, the same in every setting."""
    return [
        ("updates of the run", "one after each 1 % of training, until 80 %", [str(UPDATES)]),
        ("all of them", f"measured: {found.update:.2f} s each, on one CPU core", [f"{UPDATES * found.update:.0f} s"]),
        (
            "memory of one, when no activations are there",
            f"measured: {found.peak:.2f} P",
            [size(found.peak * model.parameters)],
        ),
        ("FSDP2: two scores gathered at one", "2 x 4 x prunable", [size(8 * model.prunable)]),
        ("a checkpoint, without the average of the weights", "measured; two are kept", [size(found.stored)]),
        ("writing it, beside training", "measured, on this disk", [f"{found.written:.1f} s"]),
    ]


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


def markdown(model: Model, found: Measured) -> str:
    """The tables."""
    ways = [f"{way}, {setting}" for way in ("DDP", "FSDP2") for setting in SETTINGS]
    parts = [
        f"P = {model.parameters:,} parameters, {model.prunable:,} of them prunable; n GPUs.",
        table(["On each GPU", "bytes", *ways], held(model, found)),
        table(["A step, each GPU", "bytes", *SETTINGS], moved(model)),
        table(["The run", "", *SETTINGS], took(model)),
        table(["Beside it", "", "any"], added(model, found)),
    ]
    return "\n\n".join(parts)


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plan", description="The tables of docs/scale.md.")
    parser.add_argument("--measured", type=Path, default=Path("reports/bench.json"), help="what the benchmark found")
    parser.add_argument("--page", type=Path, default=Path("docs/scale.md"), help="where the tables go")
    arguments = parser.parse_args()
    found = Measured.read(arguments.measured)
    fill(arguments.page, MARKS, markdown(Model.of(timm.create_model(MODEL)), found))


if __name__ == "__main__":
    main()
