"""What a training run costs, in operations counted as multiply-accumulates."""

from math import prod

from timm.optim.muon import _is_suitable_for_muon
from torch import Tensor
from torch.optim import Optimizer

from svite.sparsity.optimizers import innermost
from svite.sparsity.sparsifier import Sparsifier
from svite.vit.cost import Macs
from svite.vit.structure import HEADS


class Spending:
    """What steps cost, with masks counted once a topology: to count them asks the device.

    Multiply-accumulates of one training step. For each image: forward, gradients of inputs, gradients of weights. The
    last are dense where dead weights' gradients are asked for: at updates, and at every step of an optimizer that mixes
    the entries of what is pruned. While heads and neurons are candidates for growth, all of the step is dense. Counted
    as if dead weights were free, which for single weights they are not on most hardware. Then, once a step whatever the
    batch and the density, the optimizer's products.
    """

    def __init__(self, counted: Macs) -> None:
        self.counted, self.dense = counted, counted.total()
        self._alive, self._sparse = None, self.dense

    def step(self, sparsifier: Sparsifier | None, optimizer: Optimizer, images: int) -> float:
        """Of one step of so many images, the sparsifier standing as it does."""
        return images * self._image(sparsifier, optimizer) + products(optimizer)

    def _image(self, sparsifier: Sparsifier | None, optimizer: Optimizer) -> float:
        if sparsifier is None:
            return 3 * self.dense
        sparse = self._forward(sparsifier)
        if sparsifier.wants_dense_gradient:
            return 3 * self.dense if sparsifier.candidates else 2 * sparse + self.dense
        masked = len(sparsifier.masked_gradients(optimizer)) == len(sparsifier.weights)
        return 3 * sparse if masked else 2 * sparse + self.dense

    def _forward(self, sparsifier: Sparsifier) -> float:
        if sparsifier.alive is not self._alive:
            self._alive, self._sparse = sparsifier.alive, self.counted.total(densities(sparsifier))
        return self._sparse


def products(optimizer: Optimizer) -> int:
    """Multiply-accumulates of an optimizer's matrix products in one step: those of Muon, timm's or torch's.

    For a matrix of k x l, k <= l, each of its Newton-Schulz iterations multiplies X X^T, A A and B X: k k l + k k k +
    k k l. Of a dead weight it costs as much as of a living one. What works entry by entry (AdamW, SGD, Muon's fallback
    for vectors and embeddings) has no matrix products, and is left out as are activations and norms of the model: some
    ten operations a weight and step. So are those of Kron, which renews its preconditioners at random. Under DDP every
    process does all of it again, which is counted once.
    """
    optimizer = innermost(optimizer)
    if type(optimizer).__name__ != "Muon":
        return 0
    return sum(
        group["ns_steps"] * _iteration(parameter, group)
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.requires_grad and _is_orthogonalised(parameter, group, optimizer)
    )


def _iteration(parameter: Tensor, group: dict) -> int:
    out, *others = parameter.shape
    apart = prod(others[1:]) if group.get("conv_mode") == "batched" else 1  # a matrix for each place of a kernel
    short, long = sorted((out, prod(others) // apart))
    return apart * (2 * short * short * long + short**3)


def _is_orthogonalised(parameter: Tensor, group: dict, optimizer: Optimizer) -> bool:
    """As timm's Muon decides at a parameter's first step; torch's takes matrices only."""
    if type(optimizer).__module__.startswith("torch."):
        return True
    if group.get("use_fallback", False):
        return False
    return bool(group["use_muon"]) if "use_muon" in group else _is_suitable_for_muon(parameter)


def densities(sparsifier: Sparsifier) -> dict[str, float]:
    """The active share of each pruned parameter, and of the heads of each pruned attention layer."""
    shares = {name: float(alive.float().mean()) for name, alive in sparsifier.alive.items()}
    found = {part.name: shares[name] for name, unit in sparsifier.units.items() for part in unit.parts}
    return found | {
        name.removesuffix(f".{HEADS}"): share for name, share in shares.items() if name.endswith(f".{HEADS}")
    }
