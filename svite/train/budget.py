"""What a training run costs: images, and operations counted in multiply-accumulates."""

from svite.sparsity.optimizers import mixes_entries
from svite.sparsity.sparsifier import Sparsifier
from svite.study import HALF, Run
from svite.vit.cost import Macs


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
    mixes entries. Counted as if dead weights were free, which on most hardware they are not.
    """
    if sparsifier is None:
        return 3 * counted.total()
    sparse = counted.total({name: float(mask.float().mean()) for name, mask in sparsifier.masks.items()})
    looks_at_dead = sparsifier.dense_moments or mixes_entries(optimizer) or sparsifier.wants_dense_gradient
    return 2 * sparse + (counted.total() if looks_at_dead else sparse)
