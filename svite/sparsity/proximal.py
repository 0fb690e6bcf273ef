"""The proximal step: a pull towards zero on whole members, after the optimizer's own step."""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer

from svite.sparsity.optimizers import unwrapped
from svite.sparsity.pool import Pool
from svite.sparsity.sharded import local, shard_like, whole


@runtime_checkable
class Proximal(Protocol):
    """A rule that shortens living members at every step."""

    def proximal(
        self, norms: Float[Tensor, "arena member"], size: float, step_size: float, step: int
    ) -> Float[Tensor, "arena member"] | None:
        """What each member is multiplied by, in [0, 1], given its Euclidean length, its number of weights and the
        learning rate; None where this step pulls nobody."""


@torch.no_grad()
def pull(pool: Pool, rule: Proximal, weights: Mapping[str, Tensor], optimizer: Optimizer, step: int) -> None:
    """Multiply every member of a pool by its factor.

    Raises ValueError naming a weight that the optimizer does not train.
    """
    rates = {id(p): float(group["lr"]) for group in unwrapped(optimizer).param_groups for p in group["params"]}
    for unit in pool.units:
        first = unit.parts[0].name
        if id(weights[first]) not in rates:
            raise ValueError(
                f"The optimizer does not train {first}, which a penalty pulls; build the optimizer after the "
                "sparsifier, with this parameter, or leave its layer out of `layers`."
            )
        squares = {part.name: whole(weights[part.name].square()) for part in unit.parts}
        size = sum(weights[part.name].numel() for part in unit.parts) / unit.size
        factors = rule.proximal(unit.gather(squares).sqrt(), size, rates[id(weights[first])], step)
        if factors is None:
            return
        for part in unit.parts:
            weight = weights[part.name]
            local(weight).mul_(local(shard_like(part.cut.spread(factors, weight.shape), weight)))
