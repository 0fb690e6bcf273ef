"""Proof that a shrunk model computes what the masked one does."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from svite.vit.mode import device_of, evaluating
from svite.vit.opaque import refuse_meta


def verify(
    model: nn.Module,
    small: nn.Module,
    images: Float[Tensor, "image channel height width"],
    tolerance: float = 1e-5,
) -> float:
    """The largest absolute difference of the two models' logits in eval mode; all outputs of a tuple are compared.

    Args:
        model: the masked model.
        small: what it was shrunk to.
        images: at least one.
        tolerance: relative to the largest logit of `model`, or to 1 if that is larger.

    Raises:
        ValueError: a difference above the tolerance, or not a number; outputs of different shapes; no images; a model
            without values.
    """
    for each in (model, small):
        refuse_meta(each, "svite.verify")
    if not len(images):
        raise ValueError("There are no images to compare the models on; pass at least one.")
    expected, found = _outputs(model, images), _outputs(small, images)
    shapes = [[tuple(output.shape) for output in outputs] for outputs in (expected, found)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"The models' outputs are of shapes {shapes[0]} and {shapes[1]}, which can't be equal.")
    difference = float(_largest([one - other for one, other in zip(expected, found, strict=True)]))
    scale = max(1.0, float(_largest(expected)))
    if not difference <= tolerance * scale:  # not a number is not equal either
        raise ValueError(
            f"The models' logits differ by {difference:.3g}, where at most {tolerance * scale:.3g} is tolerated: "
            "the second model is not an exact copy of the first."
        )
    return difference


def _outputs(model: nn.Module, images: Tensor) -> list[Tensor]:
    with evaluating(model), torch.no_grad():
        output = model(images.to(device_of(model)))
    return [each.cpu() for each in ([output] if isinstance(output, Tensor) else output)]


def _largest(tensors: list[Tensor]) -> Float[Tensor, ""]:
    return torch.stack([tensor.abs().max() for tensor in tensors]).max()
