"""Removing tokens before a block.

A selector is a child module of its block, `block.selector`, called by a pre-hook of the block; all else stays timm's.
Blocks treat tokens alike wherever they lie, so a shorter sequence is exact; feature maps want the whole grid, and are
refused.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from svite.sparsity.arguments import check
from svite.sparsity.mask import count
from svite.sparsity.sharded import refuse_sharded
from svite.tokens.places import Places
from svite.tokens.scorer import Learned, Scorer
from svite.vit.intermediates import without_intermediates
from svite.vit.opaque import refuse_opaque

NO_MAPS = (
    "A model that removes tokens has no feature maps, for patches are missing in them; take them of a model without "
    "selectors, and from svite.tokens.kept which patches are left in this one."
)


def highest(scores: Float[Tensor, "image token"], keep: int) -> Int64[Tensor, "image {keep}"]:
    """Where the `keep` highest scores of each image are, in ascending order; ties go to the lower index.

    >>> highest(torch.tensor([[1.0, 3.0, 3.0, 3.0]]), 2).tolist()
    [[1, 2]]
    """
    last = scores.topk(keep, 1).values[:, -1:]  # ONNX has no stable sort, and torch's topk breaks ties as it likes
    above, ties = scores > last, scores == last
    chosen = above | (ties & (ties.cumsum(1) <= keep - above.sum(1, keepdim=True)))
    return (chosen * torch.arange(scores.shape[1], 0, -1, device=scores.device)).topk(keep, 1).indices


class Selector(nn.Module):
    """Lets the prefix tokens and the best `keep` of the patch tokens pass, in their order.

    In training each kept token is multiplied by a factor of exactly 1 that carries the gradient of its probability: one
    softmax over the scores of all patch tokens, as in the paper. What helps the loss is scored higher, and all else
    lower. Probabilities of a long sequence are small, which an optimizer that scales gradients, as Adam, doesn't mind.
    """

    def __init__(self, keep: float, prefix: int, scorer: nn.Module) -> None:
        super().__init__()
        self.keep, self.prefix, self.scorer = keep, prefix, scorer

    def wanted(self, patches: int) -> int:
        """How many of `patches` stay: the nearest whole number, at least one."""
        return max(count(self.keep, patches), 1)

    def scores(self, tokens: Float[Tensor, "image token width"], block: nn.Module) -> Float[Tensor, "image patch"]:
        """What each patch token is worth."""
        return self.scorer(tokens, block)[:, self.prefix :]

    def chosen(self, scores: Float[Tensor, "image patch"]) -> Int64[Tensor, "image kept"]:
        """Which patch tokens stay, in ascending order."""
        return highest(scores, self.wanted(scores.shape[1]))

    def forward(
        self, tokens: Float[Tensor, "image token width"], block: nn.Module
    ) -> Float[Tensor, "image kept width"]:
        """The tokens that stay, prefix first."""
        prefix, patches = tokens[:, : self.prefix], tokens[:, self.prefix :]
        if self.wanted(patches.shape[1]) == patches.shape[1]:
            return tokens
        scores = self.scores(tokens, block)
        chosen = self.chosen(scores)
        kept = patches.gather(1, chosen[..., None].expand(-1, -1, patches.shape[2]))
        if self.training:
            probability = scores.softmax(1).gather(1, chosen).to(kept.dtype)
            kept = kept * (1 + (probability - probability.detach()))[..., None]
        return torch.cat([prefix, kept], 1)

    def extra_repr(self) -> str:
        return f"keep={self.keep}"


def _selected(block: nn.Module, inputs: tuple, arguments: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    if arguments.get("attn_mask") is not None or arguments.get("is_causal"):
        raise ValueError("A model that removes tokens takes no attention mask, which would no longer fit its tokens.")
    tokens, *others = inputs
    return (block.selector(tokens, block), *others), arguments


def select(
    model: nn.Module, keep: float = 0.7, at: int | Sequence[int] | Places = (3, 6, 9), scorer: Scorer = Learned
) -> nn.Module:
    """Remove patch tokens before the blocks `at`, in training and at evaluation; prefix tokens always stay.

    Each selector keeps `keep` of the patch tokens that reach it, to the nearest whole number: three of 0.7 leave 34 %.
    SViTE+ (arXiv 2106.04533) selects once, at=0, and anneals the temperature (`anneal`).
    Where all tokens are kept the model is bit for bit what it was, and the scores get no gradient. Feature maps
    (timm's `forward_intermediates` and all that calls it) are refused from now on, and so are attention masks.

    Args:
        model: timm's VisionTransformer, whole or shrunk; changed in place and returned.
        keep: kept fraction of the patch tokens that reach a selector, in (0, 1].
        at: blocks, counted from 0, before which tokens are removed; 0 is right after the position embedding. Or a
            function from how many blocks there are to these, `svite.tokens.quarters`. The default is the fourth,
            seventh and tenth layer, as in DynamicViT (arXiv 2106.02034) and EViT (2202.07800), of twelve.
        scorer: `Learned`, to be trained (build the optimizer after this call), or `Attentive` for a trained model.

    Raises:
        ValueError: another kind of model; keep outside (0, 1], or one that would leave no patch token; a block that the
            model doesn't have, that is named twice, or that has a selector; a block that `scorer` can't read; a model
            that is sharded. Nothing has changed then.
    """
    blocks = checked_selection(model, keep, at)
    selectors = {index: Selector(keep, model.num_prefix_tokens, scorer(model, index)) for index in blocks}
    for index, selector in selectors.items():
        block = model.blocks[index]
        block.selector = selector.train(block.training)
        # The handle travels with a pickle, and keeps the process that loads it from giving its number to another hook.
        selector.hook = block.register_forward_pre_hook(_selected, with_kwargs=True)
    without_intermediates(model, NO_MAPS)
    return model


def checked_blocks(model: nn.Module, at: int | Sequence[int] | Places) -> list[int]:
    """The numbers of blocks that tokens leave before; ValueError for another model, and for those it doesn't have."""
    if not isinstance(model, VisionTransformer):
        raise ValueError(
            f"{type(model).__name__} is not timm's VisionTransformer; tokens can be removed from no model that cares "
            "where they lie, and before it is wrapped or compiled."
        )
    refuse_sharded(model, "a selector's")
    refuse_opaque(model, "svite.tokens.select")
    check(at=at)
    depth = len(model.blocks)
    at = at(depth) if callable(at) else at
    check(at=at)
    blocks = [at] if isinstance(at, int) else list(at)
    absent = [str(index) for index in blocks if index not in range(depth)]
    if absent or not blocks:
        named = f"block {', '.join(absent)}" if absent else "no block"
        raise ValueError(f"`at` names {named}; the model has blocks 0 to {depth - 1}.")
    return blocks


def checked_selection(model: nn.Module, keep: float, at: int | Sequence[int] | Places) -> list[int]:
    """The blocks of a selection; ValueError as `select` raises it, but for what only its scorer can tell."""
    blocks = checked_blocks(model, at)
    check(keep=keep)
    if any(not isinstance(block.selector, Selector) for block in model.blocks if hasattr(block, "selector")):
        raise ValueError("The model merges tokens, and sizes would not follow what is removed; select in another.")
    keeps = {index: block.selector.keep for index, block in enumerate(model.blocks) if hasattr(block, "selector")}
    for index in blocks:
        if index in keeps:
            raise ValueError(f"Block {index} can have one selector only, and would get a second.")
        keeps[index] = keep
    patches = model.patch_embed.num_patches
    for index in sorted(keeps):
        arriving, patches = patches, count(keeps[index], patches)
        if not patches:
            raise ValueError(
                f"keep={keep} would leave none of the {arriving} patch tokens that reach block {index}; ask for more."
            )
    return blocks
