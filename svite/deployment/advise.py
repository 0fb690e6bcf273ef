"""Before anyone trains: from which sparsity on a format pays on this machine, and what a model gains as it stands."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from svite.deployment.blocks import unsupported
from svite.deployment.choose import columns_like, seconds
from svite.deployment.compiled import kernels_are_there
from svite.deployment.weights import FORMATS, fitting
from svite.vit.opaque import refuse_elsewhere

if TYPE_CHECKING:
    import pandas as pd

DENSITIES = (0.4, 0.1)  # a compressed layer's time is a line in its density; two points draw it
KINDS = {"csr": 1, "block16": 16, "block32": 32}


@dataclass(frozen=True)
class Advice:
    """What `advise` found; prints itself."""

    # a row a shape of layer: milliseconds dense, of the images that go through at a time, and each format's break-even
    shapes: "pd.DataFrame"
    layers: "pd.DataFrame"  # a row a layer as it stands: sparsity, the best format, and its speed over dense
    gain: float  # speed of all linear layers together over dense, as the model stands

    def __str__(self) -> str:
        return (
            f"From which sparsity on a format beats dense on this machine:\n{self.shapes.to_string(index=False)}\n\n"
            f"As the model stands, its linear layers would run at {self.gain:.2f} times the speed of dense."
        )


def advise(model: nn.Module, batch: int = 1) -> Advice:
    """Measure the linear layers of a model's blocks in every format.

    The break-even sparsity is where the line through a format's times at two densities, of random weights, meets the
    time of the dense layer; it is above 1 where the format never pays. The gain is that of `svite.deploy`'s layers,
    without what fusing them saves.

    Args:
        model: timm's VisionTransformer, float32 on the CPU; not changed.
        batch: images that are served at a time.

    Raises:
        ValueError: another kind of model, one that `deploy` would not take, one without a layer that can be deployed,
            or a batch below 1.
        RuntimeError: the kernels can't be compiled here.
    """
    if not isinstance(model, VisionTransformer):
        raise ValueError(f"{type(model).__name__} is not timm's VisionTransformer, so there is nothing to advise.")
    refuse_elsewhere(model, "svite.advise")
    if not isinstance(batch, int) or batch < 1:
        raise ValueError(f"The batch is {batch}; it is how many images are served at a time, 1 or more.")
    if not kernels_are_there():
        raise RuntimeError("Without kernels every layer runs dense, and no sparsity pays.")
    import pandas as pd

    supported = nn.ModuleDict({name: b for name, b in model.blocks.named_children() if unsupported(b) is None})
    linears = {name: m for name, m in supported.named_modules() if type(m) is nn.Linear}
    if not linears:
        raise ValueError("No block of the model holds a linear layer that can be deployed; there is nothing to advise.")
    shapes = sorted({tuple(linear.weight.shape) for linear in linears.values()})
    measured = {shape: _break_even(shape, columns_like(model, batch, shape[1])) for shape in shapes}
    rows = list(_as_they_stand(model, linears, batch))
    frame = pd.DataFrame(rows, columns=["layer", "sparsity", "format", "dense_ms", "best_ms"])
    frame["speed"] = frame["dense_ms"] / frame["best_ms"]
    columns = ["layer", "dense_ms", *(f"{kind}_pays_from" for kind in KINDS)]
    table = pd.DataFrame([(f"{o}x{i}", *found) for (o, i), found in measured.items()], columns=columns)
    return Advice(table.round(3), frame.round(3), float(frame["dense_ms"].sum() / frame["best_ms"].sum()))


def _break_even(shape: tuple[int, int], x: Float[Tensor, "image feature token"]) -> list[float]:
    """Milliseconds of the dense layer, and the sparsity from which each format is faster."""
    weight = torch.randn(shape)
    dense = seconds(FORMATS["dense"](weight, None), x)
    found = [dense * 1e3]
    for kind, side in KINDS.items():
        if shape[0] % side or shape[1] % side:
            found.append(float("nan"))
            continue
        high, low = (seconds(FORMATS[kind](_sparse(weight, density, side), None), x) for density in DENSITIES)
        slope = (high - low) / (DENSITIES[0] - DENSITIES[1])
        found.append(1 - (dense - low + slope * DENSITIES[1]) / slope)
    return found


def _sparse(weight: Float[Tensor, "out in"], density: float, side: int) -> Float[Tensor, "out in"]:
    generator = torch.Generator().manual_seed(0)
    alive = torch.rand(weight.shape[0] // side, weight.shape[1] // side, generator=generator) < density
    return weight * alive.repeat_interleave(side, 0).repeat_interleave(side, 1)


def _as_they_stand(model: VisionTransformer, linears: dict[str, nn.Linear], batch: int) -> Iterator[tuple]:
    """Each layer's best format, with its time and that of dense."""
    for name, linear in linears.items():
        weight = linear.weight.detach()
        x = columns_like(model, batch, weight.shape[1])
        times = {kind: seconds(FORMATS[kind](weight, None), x) * 1e3 for kind in fitting(weight)}
        best = min(times, key=times.get)
        yield f"blocks.{name}", float((weight == 0).float().mean()), best, times["dense"], times[best]
