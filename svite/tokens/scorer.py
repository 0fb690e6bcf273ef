"""What a token is worth: modules from the tokens that reach a block to one score a token, higher is better."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from timm.layers import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from svite.sparsity.arguments import check
from svite.vit.attention import probabilities, queries_and_keys
from svite.vit.parts import Zero

Scorer = Callable[[VisionTransformer, int], nn.Module]


class Learned(nn.Module):
    """A linear score of each token, trained through Gumbel noise (SViTE+, arXiv 2106.04533).

    Tokens are read through a layer norm without parameters, so that noise and temperature mean the same at any depth;
    a bias would change no choice. The weight starts as timm's linear layers do: small beside the noise, yet without
    ties. It is a vector and no linear layer, so that no sparsifier prunes it. The temperature `tau` shapes the gradient
    only: which tokens stay does not depend on it.
    """

    def __init__(self, model: VisionTransformer, index: int) -> None:
        super().__init__()
        like = next(model.blocks[index].parameters())
        self.weight = nn.Parameter(nn.init.trunc_normal_(like.new_empty(model.embed_dim), std=0.02))
        self.register_buffer("tau", like.new_ones(()), persistent=False)  # torch.compile would bake a number in

    def forward(self, tokens: Float[Tensor, "image token width"], block: nn.Module) -> Float[Tensor, "image token"]:
        """Scores; in training with Gumbel noise from torch's global generator, over the temperature."""
        scores = (layer_norm(tokens, self.weight.shape) * self.weight).sum(-1)
        if not self.training:
            return scores
        gumbel = -torch.empty_like(scores).exponential_().log()
        return (scores + gumbel) / self.tau


def anneal(model: nn.Module, progress: float, start: float = 10.0, stop: float = 0.1) -> None:
    """Set the temperature of all learned selectors, on a straight line from `start` to `stop` as progress goes 0 to 1.

    Call it at each step with step / steps; a model without learned selectors stays as it is. From 10 to 0.1 is what
    the released code of SViTE+ does (arXiv 2106.04533).

    Raises ValueError for progress outside [0, 1] and for a temperature that is not above 0.
    """
    check(progress=progress, start=start, stop=stop)
    for module in model.modules():
        if isinstance(module, Learned):
            module.tau.fill_(start + (stop - start) * progress)


def heads_in_use(block: Block) -> Float[Tensor, " head"]:
    """One over their number for heads whose values reach the residual stream, zero for the others."""
    attention, proj = block.attn, block.attn.proj
    if isinstance(proj, nn.Linear):
        scale = 1 if isinstance(block.ls1, nn.Identity) else block.ls1.gamma[:, None]
        qkv = attention.qkv if isinstance(attention.qkv, nn.Linear) else attention.qkv[1]
        features = (proj.weight * scale).abs().sum(0) * qkv.weight[-attention.attn_dim :].abs().sum(1)
        used = (features.unflatten(0, (attention.num_heads, -1)).sum(1) > 0).to(features)
    else:  # it reads gathered features: of every head that is left some
        used = proj[1].weight.new_ones(attention.num_heads)
    return used / used.sum().clamp(min=1)


class Attentive(nn.Module):
    """The attention that a token receives in its block, mean over heads: nothing to train.

    It comes from the class token, as in EViT (arXiv 2202.07800), or from all tokens where there is none. Heads that
    change nothing have no say, so that a shrunk model sees what the masked one saw; where there are no others, all
    tokens are worth the same. Costs one more run of the block's qkv layer and one more product of queries and keys,
    over the tokens that arrive.

    Raises ValueError for a block without timm's attention.
    """

    def __init__(self, model: VisionTransformer, index: int) -> None:
        super().__init__()
        self.name, self.class_token = f"blocks.{index}", model.has_class_token
        self._attention(model.blocks[index])

    def _attention(self, block: nn.Module) -> Attention:
        part = block.attn if isinstance(block, Block) else block
        if not isinstance(part, Attention):
            raise ValueError(
                f"Attentive looks for the attention of timm's Block in {self.name} and finds {type(part).__name__}; "
                "select before other blocks, or use Learned."
            )
        return part

    @torch.no_grad()
    def forward(self, tokens: Float[Tensor, "image token width"], block: nn.Module) -> Float[Tensor, "image token"]:
        """Mean attention probability over heads and queries."""
        if isinstance(block.attn, Zero):  # it was removed since
            return tokens.new_zeros(tokens.shape[:2])
        attention = self._attention(block)
        queries, keys = queries_and_keys(attention, block.norm1(tokens))
        asking = queries[:, :, :1] if self.class_token else queries
        heard = probabilities(attention, asking, keys).mean(2)
        return (heard * heads_in_use(block)[:, None]).sum(1)
