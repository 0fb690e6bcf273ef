"""A training step with a sparsifier against the same dense step, averaged over an update interval."""

from collections.abc import Callable
from functools import partial

from torch import nn

from benchmarks.claim import Claim
from benchmarks.interleave import interleave
from benchmarks.training import FOREVER, Training
from svite.methods import svite

INTERVAL = 100
BOUND = 1.03


def measure(
    name: str, build: Callable[[], nn.Module], rounds: int, batch: int = 16, density: float = 0.3
) -> list[Claim]:
    """Ordinary steps and steps with an update are timed apart, and weighed as an interval of 100 steps holds them."""
    sparsify = partial(svite, density=density, steps=FOREVER)
    trainings = {
        "dense": Training(build(), batch),
        "ordinary": Training(build(), batch, partial(sparsify, interval=FOREVER)),
        "update": Training(build(), batch, partial(sparsify, interval=1)),
    }
    trainings["update"].step()  # a first step never updates
    seconds = interleave({part: training.step for part, training in trainings.items()}, rounds)
    ordinary, update = (seconds[part] / seconds["dense"] for part in ("ordinary", "update"))
    averaged = ((INTERVAL - 1) * ordinary + update) / INTERVAL
    what = f"training step of {name}, batch {batch}, density {density}"
    return [
        Claim.of(f"{what}, averaged over {INTERVAL} steps", "x dense", averaged, BOUND),
        Claim.of(f"{what}, without an update", "x dense", ordinary),
        Claim.of(f"{what}, with an update", "x dense", update),
    ]
