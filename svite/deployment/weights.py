"""Linear layers on activations that lie feature by feature: dense, in CSR, or in square blocks."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn.functional import pad

ops = torch.ops.svite
SIDES = (16, 32)
CHUNK = 96  # rows, as in kernels.cpp
NARROWEST, WIDEST = 96, 2**15 - 1  # columns of a panel, which are counted by int16
FULL = 14  # weights of a row in a panel that are worth a visit


class Weights(nn.Module):
    """What the three have in common: a bias, and how to finish. Tokens are padded to a multiple of 16.

    `kernel` is the operator's name, `read` what it reads, in its order, and `sizes` the numbers that follow.
    """

    sizes: tuple[int, ...] = ()

    def __init__(self, bias: Float[Tensor, " out"] | None) -> None:
        super().__init__()
        self.register_buffer("bias", bias)

    def forward(
        self,
        x: Float[Tensor, "image feature token"],
        residual: Float[Tensor, "image out token"] | None = None,
        activated: bool = False,
    ) -> Float[Tensor, "image out token"]:
        """W x + b, and GELU of it, or the residual stream added to it."""
        held = self._buffers  # as attributes, nn.Module looks each up for half a microsecond
        read = [held[name] for name in self.read]
        return getattr(ops, self.kernel)(x, *read, *self.sizes, held["bias"], residual, activated)


class Dense(Weights):
    """All weights, the dead ones too."""

    kernel, read = "dense", ("weight",)

    def __init__(self, weight: Float[Tensor, "out in"], bias: Float[Tensor, " out"] | None) -> None:
        super().__init__(bias)
        self.register_buffer("weight", weight.contiguous())


class _Compressed(Weights):
    """Values that live, row by row: where each row starts among them, and the column of each.

    A kernel goes wherever these lead it. So they are checked once, when they are loaded, copied or moved, and the
    kernel refuses indices that are other tensors or were written to since; shapes, types and layouts it compares at
    each call.

    Raises ValueError for indices that lead out of the layer; `load_state_dict` lists it among its errors.
    """

    read, column = ("starts", "columns", "values"), torch.int32

    def __init__(
        self,
        alive: Bool[Tensor, "row column"],
        values: Float[Tensor, "alive ..."],
        inputs: int,
        bias: Float[Tensor, " out"] | None,
    ) -> None:
        super().__init__(bias)
        ends = alive.sum(1).cumsum(0)
        self.register_buffer("starts", torch.cat([ends.new_zeros(1), ends]).int())
        self.register_buffer("columns", alive.nonzero()[:, 1].to(self.column))
        self.register_buffer("values", values.contiguous())
        self.sizes = (inputs,)

    def vouch(self) -> None:
        """Check the indices, and remember them."""
        self.check(self._buffers)
        self.remember()

    def remember(self) -> None:
        """Which tensors the indices are, and how often they were written to until now: so the kernel wants them."""
        names = [name for name in self.read if name != "values"]
        with torch.inference_mode(False):  # tensors of that mode don't tell how often
            self._buffers |= {name: self._buffers[name].clone() for name in names if self._buffers[name].is_inference()}
        indices = [self._buffers[name] for name in names]
        self.sizes = (self.sizes[0], sum(index._version for index in indices), sum(index._cdata for index in indices))

    def check(self, held: Mapping[str, Tensor | None]) -> None:
        """Refuse tensors that would lead a kernel out of them or of its input.

        Raises ValueError.
        """
        try:
            held = {name: held[name].cpu() for name in self.read}
            starts, limits = held["starts"].long(), self.limits(held)
            counts, columns = starts.diff(), held["columns"].long()
            sound = starts[0] == 0 and (counts >= 0).all() and len(counts) == len(limits)
            sound = sound and starts[-1] == len(columns) == len(held["values"]) and (columns >= 0).all()
            sound = sound and (columns < limits.repeat_interleave(counts)).all()
        except (RuntimeError, ValueError, IndexError):  # their shapes do not even go together
            sound = False
        if not sound:
            raise ValueError("The indices of a layer do not lead to its weights; deploy the model again.")

    def limits(self, held: Mapping[str, Tensor | None]) -> Int64[Tensor, " row"]:
        """How many columns each row has."""
        raise NotImplementedError

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self.vouch()

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in self.read:
            self.sizes = (self.sizes[0], -1, 0)

    def _apply(self, *arguments: Any, **named: Any) -> "_Compressed":
        super()._apply(*arguments, **named)
        self.vouch()
        return self

    def _load_from_state_dict(self, state: dict, prefix: str, *others: Any) -> None:
        held = {name: state.get(prefix + name, tensor) for name, tensor in self._buffers.items()}
        try:
            self.check({name: held[name].to(self._buffers[name].dtype) for name in self.read})
        except ValueError as error:
            others[-1].append(f"{prefix}starts, columns or values: {error}")
            return
        super()._load_from_state_dict(state, prefix, *others)
        self.vouch()


class Csr(_Compressed):
    """Single weights that live, in compressed sparse rows, panel of columns by panel; values may be bfloat16.

    A panel is as narrow as leaves a row about 14 living weights in it, for its features should stay in the
    first-level cache while the rows pass. In each panel, the rows of a chunk come by their number of weights.
    """

    kernel, read, column = "csr", ("order", *_Compressed.read), torch.int16

    def __init__(
        self,
        weight: Float[Tensor, "out in"],
        bias: Float[Tensor, " out"] | None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        outputs, inputs = weight.shape
        worth = round(weight.count_nonzero().item() / outputs / FULL)
        panels = max(inputs // WIDEST + 1, min(worth, inputs // NARROWEST))
        width = -(-inputs // panels)
        tiles = pad(weight, (0, panels * width - inputs)).unflatten(1, (panels, width)).transpose(0, 1)
        order = torch.stack([_by_count(tile) for tile in tiles])
        sorted_rows = torch.cat([tile[rows] for tile, rows in zip(tiles, order, strict=True)])
        alive = sorted_rows != 0
        super().__init__(alive, sorted_rows[alive].to(dtype), inputs, bias)
        self.register_buffer("order", order.int())
        self.remember()

    def limits(self, held: Mapping[str, Tensor | None]) -> Int64[Tensor, " row"]:
        """Those of its panel: the last one may be narrower."""
        order, inputs = held["order"].long(), self.sizes[0]
        panels, outputs = order.shape
        rows = torch.arange(outputs).expand_as(order)
        if not torch.equal(order.sort(1).values, rows) or not torch.equal(order // CHUNK, rows // CHUNK):
            raise ValueError("a chunk does not hold each of its rows once")
        width = -(-inputs // panels)
        return (inputs - width * torch.arange(panels)).clamp(0, width).repeat_interleave(outputs)


def _by_count(tile: Float[Tensor, "row column"]) -> Int64[Tensor, " row"]:
    """Rows, chunk by chunk, from the fewest living weights on."""
    chunks = torch.arange(len(tile)) // CHUNK
    return (chunks * (tile.shape[1] + 1) + tile.count_nonzero(1)).argsort(stable=True)


class Blocks(_Compressed):
    """Square blocks with at least one active weight.

    Raises ValueError for a weight that does not divide into them.
    """

    kernel = "blocks"

    def __init__(self, weight: Float[Tensor, "out in"], bias: Float[Tensor, " out"] | None, side: int = 16) -> None:
        if weight.shape[0] % side or weight.shape[1] % side:
            raise ValueError(f"A weight of {tuple(weight.shape)} does not divide into blocks of {side} x {side}.")
        tiles = weight.unflatten(1, (-1, side)).unflatten(0, (-1, side)).transpose(1, 2)
        alive = (tiles != 0).any(3).any(2)
        super().__init__(alive, tiles[alive], weight.shape[1], bias)
        self.remember()

    def limits(self, held: Mapping[str, Tensor | None]) -> Int64[Tensor, " row"]:
        """As many blocks as there are side by side."""
        side, inputs = held["values"].shape[-1], self.sizes[0]
        return torch.full((len(held["starts"]) - 1,), inputs // side)


FORMATS: dict[str, Callable[..., Weights]] = {
    "dense": Dense,
    "csr": Csr,
    "csr-bf16": partial(Csr, dtype=torch.bfloat16),
    **{f"block{side}": partial(Blocks, side=side) for side in SIDES},
}


def fitting(weight: Float[Tensor, "out in"]) -> list[str]:
    """The formats, fp32 all, that may pay for this weight: a format that skips nothing can't beat dense."""
    fits = ["dense"]
    if (weight == 0).any():
        fits.append("csr")
    for side in SIDES:
        if weight.shape[0] % side == 0 and weight.shape[1] % side == 0:
            tiles = weight.unflatten(1, (-1, side)).unflatten(0, (-1, side))
            if not (tiles != 0).any(3).any(1).all():
                fits.append(f"block{side}")
    return fits
