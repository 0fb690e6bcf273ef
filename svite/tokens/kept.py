"""Which patches of an image are left."""

from contextlib import ExitStack

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from svite.sparsity.names import unwrapped
from svite.tokens.selector import Selector
from svite.vit.mode import device_of, evaluating, uncompiled


@torch.no_grad()
def kept(
    model: nn.Module, images: Float[Tensor, "image channel height width"], batch: int = 64
) -> list[Bool[Tensor, "image patch"]]:
    """Which patches of the images' own grid, row by row, are left after each selector at evaluation.

    Raises ValueError for a model without selectors.
    """
    model = unwrapped(model)
    chosen: dict[Selector, list[Tensor]] = {m: [] for m in model.modules() if isinstance(m, Selector)}
    if not chosen:
        raise ValueError(f"{type(model).__name__} has no token selector; svite.tokens.select gives it some.")
    patches = 0

    def look(selector: Selector, inputs: tuple[Tensor, nn.Module]) -> None:
        nonlocal patches
        scores = selector.scores(*inputs)
        patches = max(patches, scores.shape[1])
        chosen[selector].append(selector.chosen(scores))

    with ExitStack() as hooks, evaluating(model), uncompiled():
        for selector in chosen:
            hooks.enter_context(selector.register_forward_pre_hook(look))
        for part in images.split(batch):
            model(part.to(device_of(model)))
    left = torch.arange(patches, device=device_of(model)).expand(len(images), -1)
    masks = []
    for positions in chosen.values():
        left = left.gather(1, torch.cat(positions))
        masks.append(left.new_zeros(len(images), patches, dtype=torch.bool).scatter(1, left, True))
    return masks
