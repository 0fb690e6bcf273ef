"""Which format each linear layer runs in: measured here and now, or as the caller says."""

import reprlib
import time
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from svite.deployment.blocks import columns_of, images_at_once, side_by_side
from svite.deployment.weights import FORMATS, Weights, fitting

ROUNDS = 3
EAGER = "eager"


def clocked(call: Callable[[Tensor], object], argument: Tensor) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    call(argument)
    return time.perf_counter() - start


def columns_like(model: VisionTransformer, batch: int, features: int) -> Float[Tensor, "sequence {features} token"]:
    """Random numbers of the shape that a layer of a deployed model meets at this batch."""
    tokens = model.patch_embed.num_patches + model.num_prefix_tokens
    return columns_of(side_by_side(torch.randn(min(batch, images_at_once(tokens)), tokens, features)))


def seconds(layer: Weights, x: Float[Tensor, "image feature token"], rounds: int = ROUNDS) -> float:
    """The shortest of some forward passes, after one that is not counted."""
    with torch.inference_mode():
        return min([clocked(layer, x) for _ in range(rounds + 1)][1:])


class Chooser:
    """Makes layers, and remembers what was chosen: a format a layer, "eager" for a block that stays as it is.

    Raises ValueError for a choice that is none, which a file may hold.
    """

    def __init__(
        self,
        asked: Mapping[str, str] | None,
        rows: Float[Tensor, "image token feature"],
        weights: torch.dtype = torch.float32,
    ) -> None:
        if asked is not None and not (isinstance(asked, Mapping) and all(isinstance(f, str) for f in asked.values())):
            raise ValueError(f"The choice is {reprlib.repr(asked)}; it should name a format for each layer.")
        self.asked, self.tokens, self.choice = asked, columns_of(side_by_side(rows))[:, 0], {}
        self.csr = "csr" if weights == torch.float32 else "csr-bf16"

    def stays(self, block: str, reason: str | None) -> bool:
        """Whether a block stays as it is: it has to, or the caller says so."""
        if reason is None and (self.asked is None or self.asked.get(block) != EAGER):
            return False
        self.choice[block] = EAGER
        return True

    def made(self, name: str, weight: Float[Tensor, "out in"], bias: Float[Tensor, " out"] | None) -> Weights:
        """The layer in its format.

        Raises ValueError where the caller's choice has no format for it, or one that does not fit.
        """
        fits = fitting(weight)
        if self.asked is not None:
            format = self.asked.get(name)
            if format not in FORMATS:
                raise ValueError(f"The choice for {name} is {format!r}; it should be one of {', '.join(FORMATS)}.")
            layer = FORMATS[format](weight, bias)
        else:
            x = self.tokens[:, None].expand(-1, weight.shape[1], -1).contiguous()
            layers = {f: FORMATS[f](weight, bias) for f in (self.csr if f == "csr" else f for f in fits)}
            format = min(layers, key=lambda f: seconds(layers[f], x))
            layer = layers[format]
        self.choice[name] = format
        return layer

    def refuse_the_rest(self) -> None:
        """ValueError for layers in the caller's choice that the model does not have."""
        unknown = sorted(map(str, set(self.asked or ()) - set(self.choice)))
        if unknown:
            raise ValueError(f"The choice names {', '.join(unknown)}, which the model does not have.")
