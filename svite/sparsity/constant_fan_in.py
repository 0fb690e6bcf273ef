"""SRigL's rule of change: the smallest of a layer go, every neuron is filled up again, and some neurons go whole."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from svite.sparsity.arguments import check
from svite.sparsity.mask import survivors, top
from svite.sparsity.pool import Pool
from svite.sparsity.rule import Alive, DropGrow, Scores


@dataclass(frozen=True)
class ConstantFanIn(DropGrow):
    """Arenas are neurons, members their inputs; every neuron that is active has equally many.

    An update of a layer with n active weights: the smallest `fraction` of them go, whosever they are, and all zeros.
    Salient is what stays, and of all the layer's weights as many with the largest gradients as went. A neuron with
    fewer salient weights than `salient` times its fan-in of the start (rounded down, at least 1) is ablated; but of
    neurons as many stay, and one more, as could hold the n weights. Those that stay are filled up by gradient, to the
    layer's budget over their number. An ablated neuron comes back when it has salient weights enough.

    With `salient` 0 no neuron is ablated, and the layer keeps its budget to the weight; else it lacks what is left of
    dividing it, less than one weight a neuron.
    """

    salient: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check(salient=self.salient)

    def select(self, pool: Pool, alive: Alive, scores: Sequence[Scores], step: int) -> Alive:
        """The members that live from `step` on.

        Raises ValueError for a fraction outside [0, 1].
        """
        if pool.density == 1:
            return alive
        (drop, grow), fraction, start = scores, self.fraction(step), pool.keep(pool.density)
        check(fraction=fraction)
        living, there = int(alive.count_nonzero()), alive & (drop > 0)
        keep = min(living - int(fraction * living), int(there.count_nonzero()))
        salient = _best(drop, there, keep) | _best(grow, torch.ones_like(alive), living - keep)
        active = self._active(salient.count_nonzero(1), start, -(-living // pool.members))
        fan_in = min(start * len(alive) // int(active.count_nonzero()), pool.members)
        kept = survivors(drop, _best(drop, there & active[:, None], keep), fan_in)
        return top(grow.masked_fill(kept, torch.inf), fan_in) & active[:, None]

    def _active(self, counts: Int[Tensor, " neuron"], fan_in: int, needed: int) -> Bool[Tensor, " neuron"]:
        """Which neurons stay, by their salient weights."""
        if not self.salient:
            return torch.ones_like(counts, dtype=torch.bool)
        most = counts.sort(descending=True).values[min(needed, len(counts) - 1)]
        return counts >= most.clamp(max=max(1, int(self.salient * fan_in)))


def _best(scores: Scores, among: Alive, keep: int) -> Alive:
    """The `keep` best of a whole layer."""
    return survivors(scores.view(1, -1), among.view(1, -1), keep).view_as(among)
