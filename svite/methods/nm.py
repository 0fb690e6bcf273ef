"""N:M sparsity, learned from scratch."""

from collections.abc import Sequence

from torch import nn

from svite.sparsity.arguments import checked
from svite.sparsity.cut import Cut, Unit, n_of_m
from svite.sparsity.layers import divided, units
from svite.sparsity.pool import Pool, uniform
from svite.sparsity.rule import DropGrow
from svite.sparsity.schedule import Falling, cosine, every
from svite.sparsity.score import gradient, magnitude
from svite.sparsity.sparsifier import Sparsifier


@checked
def nm(
    model: nn.Module,
    density: float,
    steps: int,
    *,
    m: int = 4,
    interval: int = 100,
    fraction: float = 0.5,
    until: float = 0.75,
    schedule: Falling = cosine,
    layers: Sequence[str] | None = None,
    seed: int = 0,
) -> Sparsifier:
    """`density * m` of every `m` consecutive inputs live, chosen by drop and grow (the pattern: arXiv 2104.08378).

    Without `layers`, a layer whose inputs do not divide by `m` stays dense and is listed so in the summary.

    Args:
        model: changed in place.
        density: kept fraction, a whole number of every `m` inputs (2:4 is 0.5).
        steps: optimizer steps of the whole training.
        m: inputs a group; 4:8 is freer than 2:4.
        interval: steps between updates.
        fraction: share of the living that the first update replaces, in [0, 1].
        until: share of `steps` at which that share reaches zero.
        schedule: how that share falls to there: `svite.sparsity.schedule.cosine`, `straight` or `constant`.
        layers: name patterns of the layers to prune; one that does not divide is an error.
        seed: of the topology.

    Raises:
        ValueError: an argument that makes no sense; a density that is no whole number of `m`; no such
            layer; a layer asked for that does not divide, or none that does.
    """
    n = round(density * m)
    if not 1 <= n <= m or abs(n - density * m) > 1e-9:
        raise ValueError(f"A density of {density} is not a whole number of every {m} inputs; 2 of 4 would be 0.5.")
    end = int(until * steps)
    sparse, dense = dividing(model, n_of_m(m), layers)
    if not sparse:
        raise ValueError(f"No layer's inputs divide by {m}, as {n}:{m} sparsity needs.")
    return Sparsifier(
        model,
        uniform(sparse, n / m) + [Pool((unit,), 1.0) for unit in dense],
        DropGrow(magnitude, gradient, schedule(fraction, end)),
        every(interval, until=end),
        seed=seed,
    )


def dividing(model: nn.Module, cut: Cut, layers: Sequence[str] | None = None) -> tuple[list[Unit], list[Unit]]:
    """Units of the layers that a cut divides, and units of those that it does not, which stay dense.

    Raises ValueError where `layers` names one that it does not divide.
    """
    return divided(model, cut) if layers is None else (units(model, layers, cut), [])
