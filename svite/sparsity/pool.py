"""Pools: which units compete together, and how many members of each live."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod

from svite.sparsity.arguments import check
from svite.sparsity.cut import Unit
from svite.sparsity.mask import count


@dataclass(frozen=True)
class Pool:
    """Units that compete together, and the fraction of their members that is active in the end.

    A unit may lose its last member only where `may_empty` says so.
    """

    units: tuple[Unit, ...]
    density: float
    may_empty: bool = False

    @property
    def members(self) -> int:
        """Members of one arena of the pool."""
        return sum(unit.members for unit in self.units)

    def keep(self, density: float) -> int:
        """How many members of each arena live at `density`."""
        return count(density, self.members)


Allocation = Callable[[Sequence[Unit], float], list[Pool]]


def _filled(pools: list[Pool]) -> list[Pool]:
    """The pools themselves; ValueError naming the units that would be left without a weight."""
    empty = [unit.name for pool in pools for unit in pool.units if pool.keep(pool.density) < len(pool.units)]
    if empty:
        raise ValueError(
            f"The density leaves nothing alive in {', '.join(empty)}; ask for a higher one, or leave these out of "
            "`layers`."
        )
    return pools


def uniform(units: Sequence[Unit], density: float) -> list[Pool]:
    """Every unit at the same density.

    Raises ValueError for a density outside (0, 1], as all allocations do, and for one that would empty a unit.
    """
    check(density=density)
    return _filled([Pool((unit,), density) for unit in units])


def global_allocation(units: Sequence[Unit], density: float) -> list[Pool]:
    """One pool of all units of a kind: the best members of the whole model live, heads beside heads, neurons beside
    neurons. (A head has a hundred times the weights of a neuron, and no score of both says which to keep.)

    Raises ValueError for units of several arenas, whose counts are fixed by their cut.
    """
    check(density=density)
    several = [unit.name for unit in units if unit.arenas > 1]
    if several:
        raise ValueError(f"{several[0]} is cut into arenas; its members can't compete with those of other layers.")
    return _grouped(units, density, lambda unit: unit.kind)


def isomorphic(units: Sequence[Unit], density: float) -> list[Pool]:
    """One pool of all heads, or neurons, of the same form: as wide, and reading as many features (arXiv 2407.04616).

    Raises ValueError for units whose members are no whole heads or neurons.
    """
    check(density=density)
    single = [unit.name for unit in units if not unit.is_structure]
    if single:
        raise ValueError(f"{single[0]} has single weights for members; heads and neurons have a form to compare.")
    return _grouped(units, density, lambda unit: (unit.kind, unit.shape[0] // unit.members, *unit.shape[1:]))


def _grouped(units: Sequence[Unit], density: float, form: Callable[[Unit], object]) -> list[Pool]:
    groups: dict[object, list[Unit]] = {}
    for unit in units:
        groups.setdefault(form(unit), []).append(unit)
    return _filled([Pool(tuple(members), density) for members in groups.values()])


def with_branches(units: Sequence[Unit], density: float) -> list[Pool]:
    """Pools as of `global_allocation`, but units may end empty: `svite.shrink(branches=True)` removes their branches.

    Raises ValueError for units of several arenas, and for a density that leaves nothing alive at all.
    """
    check(density=density)
    pools = [replace(pool, density=density, may_empty=True) for pool in global_allocation(units, 1.0)]
    for pool in pools:
        if not pool.keep(density):
            raise ValueError(
                f"A density of {density} leaves none of {pool.members} members alive; ask for a higher one."
            )
    return pools


def erk(units: Sequence[Unit], density: float) -> list[Pool]:
    """Erdos-Renyi-kernel: a layer gets eps * sum(shape) / prod(shape), at most 1 (arXiv 1911.11134, section 3).

    Layers that would pass 1 are dense, largest ratio first, and eps is solved again until the asked total fits.
    """
    check(density=density)
    raw = {unit.name: sum(unit.shape) / prod(unit.shape) for unit in units}
    dense: set[str] = set()
    while True:
        sparse = [unit for unit in units if unit.name not in dense]
        if not sparse:
            break
        budget = density * sum(unit.size for unit in units) - sum(unit.size for unit in units if unit.name in dense)
        scale = budget / sum(raw[unit.name] * unit.size for unit in sparse)
        largest = max(raw[unit.name] for unit in sparse)
        if scale * largest <= 1:
            break
        dense |= {unit.name for unit in sparse if raw[unit.name] == largest}
    return _filled([Pool((unit,), 1.0 if unit.name in dense else scale * raw[unit.name]) for unit in units])


def __getattr__(name: str) -> Allocation:
    if name == "together":
        warnings.warn("svite.sparsity.pool.together is called global_allocation now.", DeprecationWarning, stacklevel=2)
        return global_allocation
    raise AttributeError(f"module 'svite.sparsity.pool' has no attribute '{name}'")
