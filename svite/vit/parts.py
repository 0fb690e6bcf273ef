"""The two modules of a shrunk model that are not timm's."""

from typing import no_type_check

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn


class Zero(nn.Module):
    """A branch that was removed: zeros of its input's shape, or its bias at every position."""

    def __init__(self, bias: nn.Parameter | None = None) -> None:
        super().__init__()
        self.register_parameter("bias", bias)

    @no_type_check  # torch.compile can't look through a type checker
    def forward(
        self, x: Float[Tensor, "*position width"], attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Float[Tensor, "*position width"]:
        """The same for every input; takes what timm's attention takes."""
        return torch.zeros_like(x) if self.bias is None else self.bias.expand_as(x)


class Select(nn.Module):
    """Features of the last axis, by index, in front of a linear layer that reads only these."""

    def __init__(self, index: Int64[Tensor, " kept"]) -> None:
        super().__init__()
        self.register_buffer("index", index)

    @no_type_check
    def forward(self, x: Float[Tensor, "*position width"]) -> Float[Tensor, "*position kept"]:
        """The selected features."""
        return x.index_select(-1, self.index)
