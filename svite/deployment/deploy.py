"""A model whose linear layers run in the format that a measurement on this machine found fastest."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from svite.deployment.blocks import FusedBlocks, images_at_once, unsupported
from svite.deployment.choose import EAGER, Chooser, clocked
from svite.deployment.compiled import kernels_are_there
from svite.sparsity.names import unwrapped
from svite.vit.gates import fold, is_gated
from svite.vit.intermediates import without_intermediates
from svite.vit.mode import enough_memory
from svite.vit.opaque import refuse_elsewhere
from svite.vit.surgery_alive import copied

ROUNDS, PLAINLY = 5, 0.9


def deploy(
    model: nn.Module,
    images: Float[Tensor, "image channel height width"],
    *,
    choice: Mapping[str, str] | None = None,
    weights: torch.dtype = torch.float32,
) -> nn.Module:
    """A copy for inference on this CPU, of the same outputs, whose linear layers skip what is dead where that pays.

    No parameter of it asks for a gradient, and hooks stay behind.

    Each layer of timm's blocks runs dense, in CSR or in square blocks of 16 or 32, whichever is fastest on `images`;
    attention, norms, GELU and residual sums run in the same layout, fused. Blocks of other kinds, the patch embedding
    and the classifier stay as they are, and so does all of the model if that is fastest. Zeros are what is skipped, so
    apply masks before (`sparsifier.apply`); shrunk and token-selecting models keep what they gain.

    Args:
        model: a timm Vision Transformer on the CPU, in float32; not changed.
        images: a batch as it will be served; its size matters.
        choice: the formats to take in place of measuring, as `deployed.choice` has them: by layer "dense", "csr",
            "csr-bf16", "block16", "block32", or by block "eager". Save it with
            `svite.save(..., note={"choice": deployed.choice})`.
        weights: torch.bfloat16 stores the values of CSR layers in half of the space (outputs equal to about 1e-2).

    Raises:
        ValueError: another kind of model, one on another device or of another dtype, one that is deployed already,
            quantized or parametrized; a choice that does not fit; no images.
        MemoryError: the images are too many for this machine.
    """
    model = unwrapped(model)
    _check(model, images, weights)
    images = images.detach().to("cpu", torch.float32)
    plain = copied(fold(model) if is_gated(model) else model).eval().requires_grad_(False)
    plain.choice = {f"blocks.{index}": EAGER for index in range(len(plain.blocks))}
    if not kernels_are_there():
        return plain
    with enough_memory():
        chooser = Chooser(choice, _tokens(plain, images), weights)
        fast = _rebuilt(copied(plain), chooser)
        fast.choice = chooser.choice
        if choice is None and not _pays(fast, plain, images):
            return plain
    return fast


def _check(model: nn.Module, images: Tensor, weights: torch.dtype) -> None:
    if not isinstance(model, VisionTransformer):
        raise ValueError(f"{type(model).__name__} is not timm's VisionTransformer, so it can't be deployed.")
    if any(isinstance(block, FusedBlocks) for block in model.blocks):
        raise ValueError("The model is deployed already; deploy the one that it was made of.")
    if any(getattr(getattr(block, "selector", None), "proportional", False) for block in model.blocks):
        raise ValueError("Fused blocks can't weigh tokens by their sizes; merge with proportional=False to deploy.")
    refuse_elsewhere(model, "svite.deploy")
    if not len(images):
        raise ValueError("There are no images to measure on; pass a batch as it will be served.")
    if weights not in (torch.float32, torch.bfloat16):
        raise ValueError(f"Weights can be stored as float32 or bfloat16, not as {weights}.")


def _tokens(model: nn.Module, images: Tensor) -> Float[Tensor, "image token feature"]:
    """What the first block gets of as many images as go through at a time."""
    seen: list[Tensor] = []
    handle = model.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        with torch.no_grad():
            model(images[:1])
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        reason = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        raise ValueError(f"The model fails on images of shape {tuple(images.shape)} ({reason}).") from error
    finally:
        handle.remove()
    return seen[0].expand(min(len(images), images_at_once(seen[0].shape[1])), -1, -1)


def _rebuilt(model: nn.Module, chooser: Chooser) -> nn.Module:
    """The model with runs of supported blocks in the layout of the kernels; tokens are selected where a run begins."""
    parts: list[nn.Module | dict[str, nn.Module]] = []
    for index, block in enumerate(model.blocks):
        name = f"blocks.{index}"
        if chooser.stays(name, unsupported(block)):
            parts.append(block)
        elif parts and isinstance(parts[-1], dict) and not hasattr(block, "selector"):
            parts[-1][name] = block
        else:
            parts.append({name: block})
    runs = [FusedBlocks(part, chooser.made) if isinstance(part, dict) else part for part in parts]
    chooser.refuse_the_rest()
    model.blocks = nn.Sequential(*runs).eval()
    without_intermediates(model, "A deployed model has no outputs of single blocks; use the model that it was made of.")
    return model


def _pays(fast: nn.Module, plain: nn.Module, images: Tensor) -> bool:
    """Whether it is faster, taking turns until that is plain."""
    best = {fast: float("inf"), plain: float("inf")}
    with torch.inference_mode():
        for turn in range(ROUNDS):
            for model in best:
                best[model] = min(best[model], clocked(model, images))
            if turn and not PLAINLY < best[fast] / best[plain] < 1 / PLAINLY:
                break
    return best[fast] < best[plain]
