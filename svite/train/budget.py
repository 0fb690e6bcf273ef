"""What a training run costs: images, and operations counted in multiply-accumulates."""

from svite.sparsity.sparsifier import Sparsifier
from svite.study import HALF, Run
from svite.vit.cost import Macs
from svite.vit.structure import HEADS


def epochs(run: Run, pretrained: bool) -> int:
    """How long a run trains: the recipe's epochs, halved between a dense half and the pruned rest.

    Raises ValueError where there are not two epochs to share.
    """
    total = run.recipe.epochs
    if run.method != HALF and not pretrained:
        return total
    if total < 2:
        raise ValueError(f"recipe.epochs is {total}; a method that starts from a dense model needs at least 2.")
    return total // 2 if run.method == HALF else total - total // 2


def step_macs(counted: Macs, sparsifier: Sparsifier | None, optimizer: object) -> float:
    """Multiply-accumulates of one training step for one image: forward, gradients of inputs, gradients of weights.

    The last are dense where dead weights' gradients are asked for: at updates, and at every step of an optimizer that
    mixes the entries of what is pruned. While heads and neurons wait to be born, all of the step is dense. Counted as
    if dead weights were free, which for single weights they are not on most hardware.
    """
    dense = counted.total()
    if sparsifier is None:
        return 3 * dense
    sparse = counted.total(densities(sparsifier))
    if sparsifier.wants_dense_gradient:
        return 3 * dense if sparsifier.waits else 2 * sparse + dense
    return 3 * sparse if len(sparsifier.masked_gradients(optimizer)) == len(sparsifier.weights) else 2 * sparse + dense


def densities(sparsifier: Sparsifier) -> dict[str, float]:
    """What share lives of each pruned parameter, and of the heads of each pruned attention layer."""
    shares = {name: float(alive.float().mean()) for name, alive in sparsifier.alive.items()}
    found = {part.name: shares[name] for name, unit in sparsifier.units.items() for part in unit.parts}
    return found | {
        name.removesuffix(f".{HEADS}"): share for name, share in shares.items() if name.endswith(f".{HEADS}")
    }
