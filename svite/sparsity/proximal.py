"""The proximal step: a pull towards zero on whole members, after the optimizer's own step."""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer

from svite.sparsity.optimizers import innermost
from svite.sparsity.ownership import frozen
from svite.sparsity.pool import Pool
from svite.sparsity.sharded import full_tensor, local_shard, shard_like


@runtime_checkable
class Proximal(Protocol):
    """A rule that shortens living members at every step."""

    def proximal(
        self, norms: Float[Tensor, "arena member"], size: float, step_size: float, step: int
    ) -> Float[Tensor, "arena member"] | None:
        """What each member is multiplied by, in [0, 1], given its Euclidean length, its number of weights and the
        learning rate; None where this step pulls nothing."""


@torch.no_grad()
def pull(pool: Pool, rule: Proximal, weights: Mapping[str, Tensor], optimizers: Sequence[Optimizer], step: int) -> None:
    """Multiply every member of a pool by its factor; those of a unit that is frozen stay as they are."""
    groups = [group for optimizer in optimizers for group in innermost(optimizer).param_groups]
    rates = {id(p): float(group["lr"]) for group in groups for p in group["params"]}
    for unit in pool.units:
        if frozen([unit], weights):
            continue
        first = unit.parts[0].name
        squares = {part.name: full_tensor(weights[part.name].square()) for part in unit.parts}
        size = sum(weights[part.name].numel() for part in unit.parts) / unit.size
        factors = rule.proximal(unit.gather(squares).sqrt(), size, rates[id(weights[first])], step)
        if factors is None:
            return
        for part in unit.parts:
            weight = weights[part.name]
            local_shard(weight).mul_(local_shard(shard_like(part.cut.spread(factors, weight.shape), weight)))
