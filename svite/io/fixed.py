"""A topology that stays as it is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Bool
from torch import Tensor, nn

from svite.sparsity.cut import Part, Unit, element
from svite.sparsity.names import named_parameters
from svite.sparsity.pool import Pool
from svite.sparsity.rule import Alive, Scores
from svite.sparsity.sparsifier import Sparsifier


@dataclass(frozen=True)
class _Hold:
    """The rule that what is active stays active."""

    masks: Mapping[str, Bool[Tensor, "..."]]
    scores: tuple = ()
    batches: int = 1

    def start(self, random: Scores, pool: Pool) -> Alive:
        """The mask of the pool's only unit."""
        return self.masks[pool.units[0].name].reshape(1, -1)

    def select(self, pool: Pool, alive: Alive, scores: Sequence[Scores], step: int) -> Alive:
        """No change."""
        return alive

    def fraction(self, step: int) -> float:
        """None is replaced."""
        return 0.0


def held(model: nn.Module, masks: Mapping[str, Bool[Tensor, "..."]]) -> Sparsifier:
    """A sparsifier whose masks are these at every step, by plain parameter name; other parameters are not its own.

    Each weight stands for itself: heads and neurons that died as one are dead weights here.
    """
    weights = named_parameters(model)
    units = [Unit.of(name, [Part(name, element())], weights) for name in masks]
    pools = [Pool((unit,), float(masks[unit.name].float().mean()), may_empty=True) for unit in units]
    return Sparsifier(model, pools, _Hold(masks), lambda step: False)
