"""What happened to a topology: who was born, who died, who ever lived."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from svite.sparsity.mask import pack
from svite.sparsity.pool import Pool

if TYPE_CHECKING:
    import pandas as pd

Topology = Mapping[str, Bool[Tensor, "_arena _member"]]


@dataclass(frozen=True)
class Update:
    """One change of topology: at which step, what share of the living was asked to go, and what came of it."""

    step: int
    fraction: float
    density: float
    alive: int
    born: int
    died: int
    itop: float


def _bits(packed: Tensor) -> int:
    return int(np.bitwise_count(packed.numpy()).sum())


class History:
    """Counts births and deaths of each unit; remembers in one bit a member who ever lived."""

    def __init__(self, alive: Topology) -> None:
        self.sizes = {name: members.numel() for name, members in alive.items()}
        self.born = dict.fromkeys(alive, 0)
        self.died = dict.fromkeys(alive, 0)
        self.updates: list[Update] = []
        self._ever = {name: pack(members) for name, members in alive.items()}

    @property
    def itop(self) -> float:
        """The in-time over-parameterisation rate: members that ever lived over all members (arXiv 2102.02887)."""
        return sum(map(_bits, self._ever.values())) / sum(self.sizes.values())

    def ever(self, unit: str) -> float:
        """The share of a unit's members that ever lived."""
        return _bits(self._ever[unit]) / self.sizes[unit]

    def record(self, before: Topology, after: Topology, step: int, fraction: float) -> None:
        """Add one update."""
        born = {name: int((after[name] & ~before[name]).count_nonzero()) for name in after}
        died = {name: int((before[name] & ~after[name]).count_nonzero()) for name in after}
        for name in after:
            self.born[name] += born[name]
            self.died[name] += died[name]
            self._ever[name] |= pack(after[name])
        alive = sum(int(members.count_nonzero()) for members in after.values())
        density = alive / sum(self.sizes.values())
        totals = sum(born.values()), sum(died.values())
        self.updates.append(Update(step, fraction, density, alive, *totals, self.itop))

    def forget(self, units: Collection[str]) -> None:
        """Leave units out of all that is counted from now on."""
        for kept in (self.sizes, self.born, self.died, self._ever):
            for name in units:
                del kept[name]

    def table(self, pools: Sequence[Pool], alive: Topology, uncovered: Mapping[str, torch.Size]) -> "pd.DataFrame":
        """One row a unit: shape, target and achieved density, members born and died, and the share that ever lived.

        The uncovered come last, as dense and without a target (NaN).
        """
        import pandas as pd

        rows = [
            {
                "unit": unit.name,
                "shape": "x".join(map(str, unit.shape)),
                "target": pool.density,
                "achieved": int(alive[unit.name].sum()) / unit.size,
                "born": self.born[unit.name],
                "died": self.died[unit.name],
                "ever": self.ever(unit.name),
            }
            for pool in pools
            for unit in pool.units
        ]
        dense = {"target": math.nan, "achieved": 1.0, "born": 0, "died": 0, "ever": 1.0}
        rows += [{"unit": name, "shape": "x".join(map(str, shape)), **dense} for name, shape in uncovered.items()]
        return pd.DataFrame(rows)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""
        return {
            "born": dict(self.born),
            "died": dict(self.died),
            "updates": [asdict(update) for update in self.updates],
            "ever": {name: bits.clone() for name, bits in self._ever.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with a saved history."""
        self.born, self.died = dict(state["born"]), dict(state["died"])
        self.updates = [Update(**update) for update in state["updates"]]
        self._ever = {name: bits.to("cpu", copy=True) for name, bits in state["ever"].items()}
