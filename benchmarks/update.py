"""One topology update against one dense training step."""

from collections.abc import Callable, Sequence
from functools import partial

from torch import nn

from benchmarks.claim import Claim
from benchmarks.interleave import interleave
from benchmarks.training import FOREVER, Training
from svite.methods import svite

BOUND = 1.0


def measure(
    name: str, build: Callable[[], nn.Module], rounds: int, batch: int = 16, densities: Sequence[float] = (0.3, 0.1)
) -> list[Claim]:
    """The update is all of `before_step`; the gradients that it looks at are those of one image, and fresh."""
    dense = Training(build(), batch)
    sparse = {
        density: Training(build(), batch, partial(svite, density=density, steps=FOREVER, interval=1))
        for density in densities
    }
    for training in sparse.values():
        begin(training)
    seconds = interleave(
        {"dense": dense.step} | {str(density): training.before_step for density, training in sparse.items()},
        rounds,
        before={str(density): partial(next_step, training) for density, training in sparse.items()},
    )
    return [
        Claim.of(
            f"topology update of {name}, density {density}",
            f"x dense step of batch {batch}",
            seconds[str(density)] / seconds["dense"],
            BOUND,
        )
        for density in densities
    ]


def begin(training: Training) -> None:
    """One step, for a first one never updates, and half of the next."""
    training.step()
    training.backward(images=1)
    training.before_step()


def next_step(training: Training) -> None:
    """Finish this step; new gradients, those of one image."""
    training.finish()
    training.backward(images=1)
