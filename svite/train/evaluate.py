"""What a model predicts: deterministic, in order, without gradients."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from svite.train.data import Data, Split
from svite.vit.mode import evaluating


@torch.no_grad()
def logits(model: nn.Module, data: Data, split: Split, batch: int = 250) -> Float[Tensor, "image class"]:
    """The model's output for every image of a split, in evaluation mode."""
    device = next(model.parameters()).device
    with evaluating(model):
        return torch.cat([model(data.normalised(part).to(device)).float().cpu() for part in split.images.split(batch)])


class Accuracy(NamedTuple):
    """Percent right, and the mean cross-entropy."""

    top1: float
    top5: float
    loss: float


def best(output: Float[Tensor, "image class"], k: int = 5) -> Int[Tensor, "image k"]:
    """The k most likely classes of each image, likeliest first."""
    return output.topk(min(k, output.shape[1])).indices


def accuracy(output: Float[Tensor, "image class"], labels: Int[Tensor, " image"]) -> Accuracy:
    """Top-1 and top-5 in percent, and the loss."""
    right = best(output) == labels[:, None]
    percent = 100 / len(labels)
    return Accuracy(
        percent * int(right[:, 0].sum()), percent * int(right.sum()), float(F.cross_entropy(output, labels))
    )
