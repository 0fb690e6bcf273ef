"""What a Vision Transformer attends to."""

from contextlib import ExitStack

import torch
from jaxtyping import Float
from timm.layers import Attention
from torch import Tensor, nn

from svite.sparsity.names import unwrapped
from svite.vit.mode import device_of, evaluating, uncompiled
from svite.vit.opaque import refuse_deployed, refuse_meta


def queries_and_keys(
    attention: Attention, tokens: Float[Tensor, "image token width"]
) -> tuple[Float[Tensor, "image head token dim"], Float[Tensor, "image head token dim"]]:
    """What a layer's heads compare, normalised where the layer normalises it."""
    qkv = attention.qkv(tokens).unflatten(-1, (3, attention.num_heads, attention.head_dim))
    queries, keys, _ = qkv.permute(2, 0, 3, 1, 4)
    return attention.q_norm(queries), attention.k_norm(keys)


def probabilities(
    attention: Attention,
    queries: Float[Tensor, "image head query dim"],
    keys: Float[Tensor, "image head token dim"],
) -> Float[Tensor, "image head query token"]:
    """How each query looks at all tokens; rows sum to one."""
    return (queries @ keys.transpose(-2, -1) * attention.scale).softmax(-1)


def attention_maps(
    model: nn.Module, images: Float[Tensor, "image channel height width"], batch: int = 64
) -> list[Float[Tensor, "head token token"]]:
    """Mean attention probabilities over `images`: one (heads, tokens, tokens) tensor a layer, rows summing to one.

    Row q of a map is how token q looks at all tokens, prefix tokens first. A layer whose attention was removed as a
    whole has no map.

    Raises ValueError for a model without timm's `Attention` layers, one that removes tokens (others in each image, so
    that a mean would mix patches), and one that is deployed or has no values yet.
    """
    model = unwrapped(model)
    refuse_deployed(model, "svite.attention_maps")
    refuse_meta(model, "svite.attention_maps")
    if any(hasattr(module, "selector") for module in model.modules()):
        raise ValueError(
            "The model removes tokens, others in each image, so a mean over images would mix patches; look at the "
            "attention of a model without selectors."
        )
    layers = [module for module in model.modules() if isinstance(module, Attention)]
    if not layers:
        raise ValueError(f"{type(model).__name__} has no timm Attention layer to look at.")
    sums: dict[Attention, Tensor] = {}

    def look(layer: Attention, inputs: tuple[Tensor, ...]) -> None:
        seen = probabilities(layer, *queries_and_keys(layer, inputs[0])).sum(0)
        sums[layer] = sums[layer] + seen if layer in sums else seen

    with ExitStack() as hooks, evaluating(model), uncompiled(), torch.no_grad():
        for layer in layers:
            hooks.enter_context(layer.register_forward_pre_hook(look))
        for part in images.split(batch):
            model(part.to(device_of(model)))
    return [sums[layer] / len(images) for layer in layers]


def centre_patch_maps(
    model: nn.Module, images: Float[Tensor, "image channel height width"]
) -> Float[Tensor, "layer head row column"]:
    """How the patch in the centre looks at all patches: the maps of the SViTE paper's figure 8.

    Raises ValueError for layers with different numbers of heads, and as `attention_maps` does.
    """
    model = unwrapped(model)
    height, width = model.patch_embed.grid_size
    prefix = model.num_prefix_tokens
    centre = prefix + (height // 2) * width + width // 2
    maps = attention_maps(model, images)
    if len({len(layer) for layer in maps}) > 1:
        raise ValueError("The layers have different numbers of heads; draw `attention_maps` layer by layer.")
    return torch.stack([layer[:, centre, prefix:] for layer in maps]).unflatten(-1, (height, width))
