"""What a trained model is saved as: without what is dead as a whole."""

from torch import nn

from svite.sparsity.sparsifier import Sparsifier
from svite.vit.gates import fold, is_gated
from svite.vit.gather import gather_inputs
from svite.vit.shrink import shrink


def finished(model: nn.Module, sparsifier: Sparsifier | None) -> tuple[nn.Module, Sparsifier | None]:
    """The model without dead heads, neurons, branches and gated features, and whose masks hold for what is left.

    Single dead weights stay, as zeros with their masks: they leave no smaller matrix behind.
    """
    if sparsifier is None:
        return model, None
    if is_gated(model):
        return gather_inputs(shrink(fold(model), branches=True)), None
    if any(unit.is_structure or len(unit.shape) == 1 for unit in sparsifier.units.values()):
        return shrink(model, sparsifier, branches=True), None
    return model, sparsifier
