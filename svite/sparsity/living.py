"""Which of a model's weights are active, and ever were: units, members, masks, and following where weights go."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from svite.sparsity import mask
from svite.sparsity.cut import Unit
from svite.sparsity.history import History, Update
from svite.sparsity.layers import matching, uncovered
from svite.sparsity.names import named_parameters
from svite.sparsity.pool import Pool
from svite.sparsity.ready import refuse_unready
from svite.sparsity.rule import DropGrow, Rule
from svite.sparsity.sharded import is_sharded, shard_like

if TYPE_CHECKING:
    import pandas as pd

Contests = Sequence[tuple[Pool, Rule]]


@dataclass(frozen=True)
class Rebound:
    """Weights that were replaced by others of their shape, and units that had none: these are pruned no more."""

    masked: tuple[str, ...]
    dropped: tuple[str, ...]

    def __str__(self) -> str:
        return f"masked again: {', '.join(self.masked) or 'none'}; pruned no more: {', '.join(self.dropped) or 'none'}"


class Living:
    """Masks beside a model, under its own parameter names."""

    def __init__(self, model: nn.Module, contests: Contests) -> None:
        self.model = model
        self._arrange(contests)
        refuse_unready(model)
        parameters = named_parameters(model)
        self.weights = {part.name: parameters[part.name] for unit in self.units.values() for part in unit.parts}

    def begin(self, alive: Mapping[str, Bool[Tensor, "_arena _member"]]) -> None:
        """Start with these alive."""
        self.history = History(alive)
        self.hold(alive)
        self.mask_weights()

    def _arrange(self, contests: Contests) -> None:
        self.contests = tuple(contests)
        self.pools, self.rules = tuple(pool for pool, _ in contests), tuple(rule for _, rule in contests)
        units = [unit for pool in self.pools for unit in pool.units]
        _refuse_overlap(units)
        self.units = {unit.name: unit for unit in units}
        growing = [pool for pool, rule in contests if isinstance(rule, DropGrow)]
        # Units whose dead heads or neurons may grow: to be scored, their incoming weights are re-initialised.
        self.candidates = [unit for pool in growing for unit in pool.units if unit.is_structure]

    def hold(self, alive: Mapping[str, Bool[Tensor, "_arena _member"]]) -> None:
        """Let these live, from now on; weights change at the next `mask_weights`."""
        self.alive = mask.Packed(alive) if is_sharded(self.weights.values()) else dict(alive)
        self.masks = self.spread(alive.items(), self.weights)

    def spread(self, topology: Iterable[tuple[str, Tensor]], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Each unit's members over the elements of its weights, sharded as these are."""
        return {
            part.name: shard_like(part.cut.spread(members, weights[part.name].shape), weights[part.name])
            for unit, members in topology
            for part in self.units[unit].parts
        }

    def mask_weights(self) -> None:
        """Make dead weights exactly zero."""
        for name, weight in self.weights.items():
            mask.apply_mask(weight, self.masks[name])

    @torch.no_grad()
    def apply(self, model: nn.Module) -> None:
        """Zero the dead weights of another copy of the model, an EMA say.

        Raises ValueError naming a weight that the copy lacks or holds in another shape; nothing has changed then.
        """
        parameters = named_parameters(model)
        for name, alive in self.masks.items():
            if name not in parameters or parameters[name].shape != alive.shape:
                raise ValueError(
                    f"The model given has no {name} of shape {tuple(alive.shape)}, which is masked here; "
                    "`sparsifier.rebind(model)` lets go of what was replaced."
                )
        for name, alive in self.spread(self.alive.items(), parameters).items():
            mask.apply_mask(parameters[name], alive.to(parameters[name].device))

    @property
    def density(self) -> float:
        """Alive over all weights of the units, counted from the topology, whole on every rank.

        What no unit holds does not count: position embeddings, recurrent layers and all else that `uncovered` names.
        """
        sizes = {u.name: sum(self.weights[part.name].numel() for part in u.parts) for u in self.units.values()}
        alive = sum(int(self.alive[name].sum()) * sizes[name] // unit.size for name, unit in self.units.items())
        return alive / sum(sizes.values())

    @property
    def itop(self) -> float:
        """The share of members that ever lived."""
        return self.history.itop

    @property
    def updates(self) -> list[Update]:
        """Every change of topology so far."""
        return self.history.updates

    def summary(self) -> "pd.DataFrame":
        """One row a unit: shape, target and achieved density, members born and died, and the share that ever lived.

        Then one for each matrix that no unit holds: it is dense, it has no target, and no density counts it.
        """
        return self.history.table(self.pools, self.alive, self.uncovered)

    @property
    def uncovered(self) -> dict[str, torch.Size]:
        """The shapes of the model's parameters of two or more dimensions that no unit holds."""
        return uncovered(named_parameters(self.model), self.weights)

    # Where layers are replaced

    def drop(self, *layers: str) -> list[str]:
        """Let go of the layers whose names match: their weights stay as they are, and train dense from now on.

        A name is a unit's or its layer's: "head", "blocks.*.attn", "blocks.0.mlp.neurons". Returns the names of the
        units.

        Raises ValueError for a pattern that matches none, where nothing would be left to prune, and while attached;
        nothing has changed then.
        """
        if odd := [layer for layer in layers if not isinstance(layer, str)]:
            raise ValueError(f"Layers are named one by one, drop('head', 'blocks.0.*') say, not as {odd[0]!r}.")
        owners = [(name, unit) for unit in self.units for name in (unit, unit.rpartition(".")[0])]
        matched = set(matching([name for name, _ in owners], layers))
        dropped = list(dict.fromkeys(unit for name, unit in owners if name in matched))
        self._let_go(dropped)
        return dropped

    def rebind(self, model: nn.Module) -> Rebound:
        """Go on with a model whose layers were replaced, or with a copy; says what it did (`print` it).

        A parameter of the same name and shape takes the place of the old one and is masked as that was. A unit that
        lacks one (a classifier for other classes, a patch embedding of another size) is let go, and dense from now on.
        Build a new optimizer then, and call `svite.narrow` again where it was in use.

        Raises ValueError for a model that shares no unit or is not ready, and while attached; nothing has changed then.
        """
        refuse_unready(model)
        parameters = named_parameters(model)
        dropped = self._misfits(parameters)
        self._let_go(dropped)
        replaced = [name for name, weight in self.weights.items() if weight is not parameters[name]]
        self.model, self.weights = model, {name: parameters[name] for name in self.weights}
        self.hold(self.alive)
        self.mask_weights()
        return Rebound(tuple(replaced), tuple(dropped))

    def _misfits(self, parameters: Mapping[str, Tensor]) -> list[str]:
        """The units with a weight of which `parameters` has none, or one of another shape."""
        shapes = {name: parameter.shape for name, parameter in parameters.items()}
        return [
            unit.name
            for unit in self.units.values()
            if any(shapes.get(part.name) != self.weights[part.name].shape for part in unit.parts)
        ]

    def _let_go(self, dropped: Collection[str]) -> None:
        smaller = [
            (replace(pool, units=tuple(unit for unit in pool.units if unit.name not in dropped)), rule)
            for pool, rule in self.contests
        ]
        if not any(pool.units for pool, _ in smaller):
            raise ValueError(f"Nothing would be left to prune without {', '.join(dropped)}.")
        alive = {name: members for name, members in self.alive.items() if name not in dropped}
        self._arrange([(pool, rule) for pool, rule in smaller if pool.units])
        self.weights = {part.name: self.weights[part.name] for unit in self.units.values() for part in unit.parts}
        self.hold(alive)
        self.history.forget(dropped)


def _refuse_overlap(units: Sequence[Unit]) -> None:
    """ValueError where there is no unit, or where two would decide on one weight."""
    if not units:
        raise ValueError("There is nothing to prune: no unit came of the cut and the pools.")
    if len({unit.name for unit in units}) < len(units):
        raise ValueError("A unit is in two pools, or two units have one name; each needs a place of its own.")
    holder: dict[str, str] = {}
    for unit in units:
        for part in unit.parts:
            if holder.setdefault(part.name, unit.name) != unit.name:
                raise ValueError(
                    f"{part.name} is in two units, {holder[part.name]} and {unit.name}; only one can decide on it."
                )
