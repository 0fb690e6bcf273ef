"""Blocks of a timm Vision Transformer on activations that lie feature by feature.

The layout changes once, where a run of blocks begins and ends (and where tokens are selected), not once a layer; bias,
GELU, LayerScale and the residual sum are part of the layers that they follow.
"""

import math
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from timm.layers import Attention, LayerNorm, LayerNormFp32, LayerScale, Mlp
from timm.layers.activations import GELU
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from svite.deployment.compiled import kernels_are_there
from svite.deployment.weights import Weights, ops
from svite.sparsity.ready import Opaque
from svite.vit.parts import Select, Zero

Rows = Float[Tensor, "image token feature"]
Sequences = Float[Tensor, "sequence several feature"]
Columns = Float[Tensor, "sequence feature padded"]
Making = Callable[[str, Float[Tensor, "out in"], Float[Tensor, " out"] | None], Weights]

LANES = 16  # tokens are padded to a multiple of
TOGETHER = 208  # tokens of images that share a sequence, at most: with more, activations leave the second-level cache
NORMS, GELUS = (nn.LayerNorm, LayerNorm, LayerNormFp32), (nn.GELU, GELU)


def images_at_once(tokens: int) -> int:
    """How many images go through at a time: small ones share a sequence, its padding and the reading of weights."""
    return torch.get_num_threads() * max(1, TOGETHER // tokens)


def side_by_side(rows: Rows) -> Sequences:
    """Images that go through at a time as sequences, one a thread; an image each where their number doesn't divide."""
    images, tokens, features = rows.shape
    shared = math.gcd(images, max(1, images // torch.get_num_threads()))
    return rows.reshape(-1, shared * tokens, features)


def columns_of(rows: Sequences) -> Columns:
    """Feature by feature, with zeros for tokens up to the next multiple of 16."""
    sequences, tokens, features = rows.shape
    out = rows.new_empty(sequences, features, -(-tokens // LANES) * LANES)
    out[:, :, :tokens] = rows.transpose(1, 2)
    out[:, :, tokens:] = 0
    return out


def rows_of(columns: Columns, tokens: int) -> Sequences:
    """Token by token again."""
    return columns[:, :, :tokens].transpose(1, 2)


def unsupported(block: nn.Module) -> str | None:
    """Why a block can't run this way, or None if it can. What is of a subclass may compute something else."""
    if type(block) is not Block:
        return f"it is a {type(block).__name__}, not timm's Block"
    scales, norms, linears = [block.ls1, block.ls2], [], []
    if not isinstance(block.attn, Zero):
        attention = block.attn
        if type(attention) is not Attention or attention.gate is not None or not _is_plain(attention.norm):
            return f"its attention is {type(attention).__name__} with a gate or a norm of its own"
        norms += [block.norm1, *(norm for norm in (attention.q_norm, attention.k_norm) if not _is_plain(norm))]
        linears += [attention.qkv, attention.proj]
    if not isinstance(block.mlp, Zero):
        mlp = block.mlp
        if type(mlp) is not Mlp or not _is_plain(mlp.norm):
            return f"its MLP is {type(mlp).__name__} with a norm of its own, or no MLP of timm's"
        if type(mlp.act) not in GELUS or getattr(mlp.act, "approximate", "none") != "none":
            return f"its activation is {type(mlp.act).__name__}, not exact GELU"
        norms.append(block.norm2)
        linears += [mlp.fc1, mlp.fc2]
    odd = [module for module in scales if not _is_plain(module) and type(module) is not LayerScale]
    odd += [norm for norm in norms if type(norm) not in NORMS or norm.weight is None]
    odd += [layer for layer in linears if type(_linear(layer)) is not nn.Linear]
    return f"{type(odd[0]).__name__} in it is no LayerNorm with weights, LayerScale or linear layer" if odd else None


def _is_plain(module: nn.Module) -> bool:
    return isinstance(module, nn.Identity)


def _linear(layer: nn.Module) -> nn.Module:
    """The layer, or the one behind what selects its input's features."""
    return layer[1] if type(layer) is nn.Sequential and type(layer[0]) is Select else layer


def whole_weight(layer: nn.Module, features: int) -> tuple[Float[Tensor, "out in"], Float[Tensor, " out"] | None]:
    """Weight and bias of a linear layer, over all of its input's features where it reads selected ones."""
    linear = _linear(layer)
    weight, bias = linear.weight.detach(), linear.bias
    if linear is not layer:
        weight = weight.new_zeros(len(weight), features).index_copy(1, layer[0].index, weight)
    return weight, None if bias is None else bias.detach()


class Norm(nn.Module):
    """LayerNorm over features."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.epsilon = norm.weight, norm.bias, norm.eps

    def forward(self, x: Columns) -> Columns:
        """Each token by itself."""
        return ops.layer_norm(x, self.weight, self.bias, self.epsilon)


class FastAttention(nn.Module):
    """Norm, attention and residual sum."""

    def __init__(self, name: str, block: Block, make: Making) -> None:
        super().__init__()
        attention: Attention = block.attn
        self.heads, self.inner, self.scale = attention.num_heads, attention.attn_dim, attention.scale
        self.norm = Norm(block.norm1)
        self.head_norms = nn.ModuleList(
            norm if _is_plain(norm) else Norm(norm) for norm in (attention.q_norm, attention.k_norm)
        )
        self.qkv = make(f"{name}.attn.qkv", *whole_weight(attention.qkv, block.norm1.weight.numel()))
        self.proj = make(f"{name}.attn.proj", *scaled(*whole_weight(attention.proj, self.inner), block.ls1))

    def forward(self, x: Columns, images: int, tokens: int) -> Columns:
        """The residual stream after the branch; its columns are images side by side, of `tokens` each, and padding."""
        qkv = self.qkv(self.norm(x))
        for part, norm in enumerate(self.head_norms):
            if not _is_plain(norm):
                heads = qkv[:, part * self.inner : (part + 1) * self.inner]
                normed = norm(heads.reshape(len(x) * self.heads, -1, x.shape[2]))
                heads.copy_(normed.view_as(heads))
        return self.proj(ops.attention(qkv, self.heads, images, tokens, self.scale), residual=x)


class FastMlp(nn.Module):
    """Norm, MLP and residual sum."""

    def __init__(self, name: str, block: Block, make: Making) -> None:
        super().__init__()
        self.norm = Norm(block.norm2)
        self.fc1 = make(f"{name}.mlp.fc1", *whole_weight(block.mlp.fc1, block.norm2.weight.numel()))
        self.fc2 = make(f"{name}.mlp.fc2", *scaled(*whole_weight(block.mlp.fc2, block.mlp.fc2.in_features), block.ls2))

    def forward(self, x: Columns, images: int, tokens: int) -> Columns:
        """The residual stream after the branch."""
        return self.fc2(self.fc1(self.norm(x), activated=True), residual=x)


class Constant(nn.Module):
    """A branch that was removed, whose bias every token still gets."""

    def __init__(self, bias: Float[Tensor, " feature"] | None) -> None:
        super().__init__()
        self.register_buffer("bias", None if bias is None else bias.detach()[:, None])

    def forward(self, x: Columns, images: int, tokens: int) -> Columns:
        """The residual stream after the branch."""
        return x if self.bias is None else x + self.bias


@torch.no_grad()
def scaled(
    weight: Float[Tensor, "out in"], bias: Float[Tensor, " out"] | None, scale: nn.Module
) -> tuple[Float[Tensor, "out in"], Float[Tensor, " out"] | None]:
    """Weight and bias with the block's LayerScale multiplied in."""
    if _is_plain(scale):
        return weight, bias
    return weight * scale.gamma[:, None], None if bias is None else bias * scale.gamma


def made_branches(name: str, block: Block, make: Making) -> list[nn.Module]:
    """The two branches of a block that `unsupported` has nothing against."""
    made = []
    for branch, scale, fast in ((block.attn, block.ls1, FastAttention), (block.mlp, block.ls2, FastMlp)):
        if isinstance(branch, Zero):
            made.append(Constant(None if branch.bias is None else scale(branch.bias)))
        else:
            made.append(fast(name, block, make))
    return made


class FusedBlocks(Opaque):
    """Blocks one after the other in the layout of the kernels; tokens change layout at both ends.

    Images go through few at a time, so that activations stay in the cache.
    """

    def __init__(self, blocks: Mapping[str, Block], make: Making) -> None:
        super().__init__()
        first = next(iter(blocks.values()))
        # A selector may read the block that it stands before, so that one is kept as it is.
        self.selecting = first if hasattr(first, "selector") else None
        self.branches = nn.ModuleList(
            made for name, block in blocks.items() for made in made_branches(name, block, make)
        )

    def __setstate__(self, state: dict) -> None:
        """A process that unpickles a deployed model may not have loaded the kernels. RuntimeError where it can't."""
        super().__setstate__(state)
        if not kernels_are_there():
            raise RuntimeError("This model was deployed with kernels that can't be used here; deploy it here instead.")

    def forward(
        self, rows: Rows, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Float[Tensor, "image left feature"]:
        """The tokens that are left.

        Raises RuntimeError in training mode (the kernels have no gradients), for another dtype or device, for a mask.
        """
        if attn_mask is not None or is_causal:
            raise RuntimeError("A deployed model takes no attention mask; use the model that it was made of.")
        if self.training:
            raise RuntimeError("A deployed model is for inference; train the model that it was made of.")
        if rows.dtype != torch.float32 or rows.device.type != "cpu":
            raise RuntimeError(f"A deployed model takes float32 on the CPU, not {rows.dtype} on {rows.device}.")
        with torch.no_grad():
            if self.selecting is not None:
                rows = self.selecting.selector(rows, self.selecting)
            out, at_once = rows.new_empty(rows.shape), images_at_once(rows.shape[1])
            for part, place in zip(rows.split(at_once), out.split(at_once), strict=True):
                self._through(side_by_side(part), part.shape[1], place)
            return out

    def _through(self, sequences: Sequences, tokens: int, out: Rows) -> None:
        """Images of so many tokens, side by side, through all branches."""
        columns, length = columns_of(sequences), sequences.shape[1]
        for branch in self.branches:
            columns = branch(columns, length // tokens, tokens)
        out.view_as(sequences).copy_(rows_of(columns, length))
