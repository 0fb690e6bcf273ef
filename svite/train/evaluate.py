"""What a model predicts: deterministic, in order, without gradients."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from jaxtyping import Float, Int
from torch import Tensor, nn

from svite.data.memory import Data, Split
from svite.data.source import Batch
from svite.sparsity.sharded import at_rest
from svite.train.processes import padded
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


def _sums(output: Float[Tensor, "image class"], labels: Int[Tensor, " image"]) -> Float[Tensor, "4"]:
    """Images, right at first guess, right among five, and the sum of losses."""
    right = best(output) == labels[:, None]
    loss = F.cross_entropy(output, labels, reduction="none").double().sum()
    return torch.tensor([len(labels), right[:, 0].sum(), right.sum(), loss], dtype=torch.float64)


def _means(sums: Float[Tensor, "4"]) -> Accuracy:
    images, first, five, loss = sums.tolist()
    if not images:
        raise ValueError("Nothing can be validated: there is no image, or none that can be read.")
    return Accuracy(100 * first / images, 100 * five / images, loss / images)


def accuracy(output: Float[Tensor, "image class"], labels: Int[Tensor, " image"]) -> Accuracy:
    """Top-1 and top-5 in percent, and the loss."""
    return _means(_sums(output, labels))


@torch.no_grad()
def validated(model: nn.Module, batches: Iterable[Batch], accelerator: Accelerator) -> Accuracy:
    """Accuracy over the images of all processes, each counted once."""
    sums = torch.zeros(4, dtype=torch.float64)
    with evaluating(model):
        for (images, labels), counts in padded(accelerator, iter(batches)):
            output = model(images.to(accelerator.device)).float().cpu()
            if counts:
                sums += _sums(output, labels)
    at_rest(model)
    return _means(accelerator.reduce(sums.to(accelerator.device), "sum").cpu())
