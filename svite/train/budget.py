"""What a training run costs, in operations counted as multiply-accumulates."""

from svite.sparsity.sparsifier import Sparsifier
from svite.vit.cost import Macs
from svite.vit.structure import HEADS


class Spending:
    """What steps cost, with masks counted once a topology: to count them asks the device.

    Multiply-accumulates of one training step for one image: forward, gradients of inputs, gradients of weights. The
    last are dense where dead weights' gradients are asked for: at updates, and at every step of an optimizer that mixes
    the entries of what is pruned. While heads and neurons are candidates for growth, all of the step is dense. Counted
    as if dead weights were free, which for single weights they are not on most hardware.
    """

    def __init__(self, counted: Macs) -> None:
        self.counted, self.dense = counted, counted.total()
        self._alive, self._sparse = None, self.dense

    def step(self, sparsifier: Sparsifier | None, optimizer: object) -> float:
        """Of one step, the sparsifier standing as it does."""
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


def densities(sparsifier: Sparsifier) -> dict[str, float]:
    """The active share of each pruned parameter, and of the heads of each pruned attention layer."""
    shares = {name: float(alive.float().mean()) for name, alive in sparsifier.alive.items()}
    found = {part.name: shares[name] for name, unit in sparsifier.units.items() for part in unit.parts}
    return found | {
        name.removesuffix(f".{HEADS}"): share for name, share in shares.items() if name.endswith(f".{HEADS}")
    }
