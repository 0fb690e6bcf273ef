"""Merging tokens before a block: the most similar become one, their mean.

A merger stands where a selector does, `block.selector`, called by a pre-hook of the block; all else stays timm's.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from timm.layers import Attention
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn.functional import normalize

from svite.sparsity.arguments import check
from svite.tokens.places import Places, later
from svite.tokens.selector import NO_MAPS, checked_blocks, highest
from svite.vit.attention import queries_and_keys
from svite.vit.intermediates import without_intermediates
from svite.vit.parts import Zero

Tokens = Float[Tensor, "image token width"]
Fewer = Float[Tensor, "image left width"]


class Carried:
    """How many of a model's patches each token of the present pass stands for; its mergers share one."""

    sizes: Tensor | None = None


class Merger(nn.Module):
    """Merges `r` patch tokens, no more than half of them, into others; prefix tokens pass as they are.

    If `proportional`, its block attends to a token in proportion to how many patches that stands for.
    """

    def __init__(self, r: int, prefix: int, carried: Carried, first: bool, proportional: bool) -> None:
        super().__init__()
        self.r, self.prefix, self.carried, self.first, self.proportional = r, prefix, carried, first, proportional

    def forward(self, tokens: Tokens, block: nn.Module) -> Fewer:
        """The tokens that are left: prefix, those of the even places, those of the odd ones."""
        sizes = tokens.new_ones(tokens.shape[:2]) if self.first else self.carried.sizes
        gone = min(self.r, (tokens.shape[1] - self.prefix) // 2)
        if gone:
            tokens, sizes = merged(tokens, sizes, keys(block, tokens), gone, self.prefix)
        self.carried.sizes = sizes
        return tokens

    def extra_repr(self) -> str:
        return f"r={self.r}"


@torch.no_grad()
def keys(block: nn.Module, tokens: Tokens) -> Float[Tensor, "image token dim"]:
    """What is compared: the block's keys, mean over heads; all the same where its attention was removed."""
    if isinstance(block.attn, Zero):
        return tokens.new_zeros(*tokens.shape[:2], 1)
    return queries_and_keys(block.attn, block.norm1(tokens))[1].mean(1)


def merged(
    tokens: Tokens,
    sizes: Float[Tensor, "image token"],
    metric: Float[Tensor, "image token dim"],
    gone: int,
    prefix: int,
) -> tuple[Fewer, Float[Tensor, "image left"]]:
    """Bipartite soft matching: each patch at an even place has its most similar one at an odd place, by the cosine of
    `metric`; the `gone` most similar pairs become one, the mean of all patches that they stand for."""
    places = torch.arange(prefix, tokens.shape[1], device=tokens.device)
    even, odd = places[::2], places[1::2]
    compared = normalize(metric, dim=-1)
    best, partner = (compared[:, even] @ compared[:, odd].transpose(1, 2)).max(-1)
    leaving = highest(best, gone)
    rest = len(even) - gone
    staying = highest(torch.ones_like(best).scatter(1, leaving, 0.0), rest) if rest else leaving[:, :0]
    receiver = partner.gather(1, leaving)
    summed, whole = tokens * sizes[..., None], sizes[:, odd]
    whole = whole.scatter_add(1, receiver, sizes[:, even].gather(1, leaving))
    received = summed[:, odd].scatter_add(1, _wide(receiver, tokens), summed[:, even].gather(1, _wide(leaving, tokens)))
    kept = tokens[:, even].gather(1, _wide(staying, tokens))
    return (
        torch.cat([tokens[:, :prefix], kept, received / whole[..., None]], 1),
        torch.cat([sizes[:, :prefix], sizes[:, even].gather(1, staying), whole], 1),
    )


def _wide(places: Tensor, tokens: Tokens) -> Tensor:
    return places[..., None].expand(-1, -1, tokens.shape[2])


def _merging(block: nn.Module, inputs: tuple, arguments: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    if arguments.get("attn_mask") is not None or arguments.get("is_causal"):
        raise ValueError("A model that merges tokens takes no attention mask, which would no longer fit its tokens.")
    tokens, *others = inputs
    tokens = block.selector(tokens, block)
    if block.selector.proportional:
        arguments = arguments | {"attn_mask": block.selector.carried.sizes.log()[:, None, None]}
    return (tokens, *others), arguments


def merge(
    model: nn.Module, r: int = 8, at: int | Sequence[int] | Places = later, *, proportional: bool = True
) -> nn.Module:
    """Merge `r` patch tokens into similar ones before the blocks `at`, in training and evaluation (arXiv 2210.09461).

    Section 3: bipartite soft matching by the cosine of keys, means weighted by how many patches a token stands for, and
    proportional attention, softmax(q k / sqrt(d) + log size). Nothing is trained, a trained model goes on without. The
    paper merges between a block's attention and its MLP; here it is before the block, by the keys that it will use, so
    that attention gets cheaper, too. All prefix tokens are protected. Feature maps and attention masks are refused from
    now on, and so is saving; `svite.deploy` takes mergers with `proportional=False`.

    Args:
        model: timm's VisionTransformer, whole or shrunk; changed in place and returned.
        r: patch tokens that each merger takes away, at most half of those that reach it.
        at: blocks, counted from 0, before which tokens are merged, or a function from how many blocks there are to
            these. The default is every block but the first.
        proportional: let tokens weigh in attention as much as the patches that they stand for.

    Raises:
        ValueError: another kind of model; an argument that makes no sense; a block that the model doesn't have, or that
            has no timm attention; a model that selects or merges tokens already, or is sharded. Nothing has changed.
    """
    check(r=r)
    blocks = checked_blocks(model, at)
    if any(hasattr(block, "selector") for block in model.blocks):
        raise ValueError("The model selects or merges tokens already, and sizes would not follow; merge in another.")
    for index in blocks:
        block = model.blocks[index]
        if not isinstance(block, Block) or not isinstance(block.attn, Attention | Zero):
            raise ValueError(f"Block {index} has no attention of timm's, whose keys tell which tokens are similar.")
    carried, first = Carried(), min(blocks)
    for index in range(first, len(model.blocks)) if proportional else blocks:
        block = model.blocks[index]
        merger = Merger(r if index in blocks else 0, model.num_prefix_tokens, carried, index == first, proportional)
        block.selector = merger.train(block.training)
        block.selector.hook = block.register_forward_pre_hook(_merging, with_kwargs=True)
    without_intermediates(model, NO_MAPS)
    return model
