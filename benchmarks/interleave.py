"""Timing that a shared machine does not spoil: contestants take turns, and only ratios are reported."""

import time
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

Call = Callable[[], object]


def interleave(
    calls: Mapping[str, Call], rounds: int, before: Mapping[str, Call] | None = None
) -> dict[str, Float[ndarray, " rounds"]]:
    """Seconds that each of `calls` took in each round, after a first round that is not counted.

    Every other round runs in reverse order, so that nobody always follows the same neighbour. The clock counts this
    process's CPU time: with one thread that is wall time, less what other jobs took. `before[name]` is not timed.
    """
    before = before or {}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name in list(calls)[:: 1 if turn % 2 else -1]:
            before.get(name, lambda: None)()
            start = time.process_time()
            calls[name]()
            seconds[name].append(time.process_time() - start)
    return {name: np.array(values[1:]) for name, values in seconds.items()}


def timed(calls: Mapping[str, Callable[[Tensor], object]], images: Tensor, rounds: int) -> dict:
    """Seconds that each took for the images in each round, without gradients."""
    with torch.inference_mode():
        return interleave({name: partial(call, images) for name, call in calls.items()}, rounds)


def spread(values: Float[ndarray, " rounds"], draws: int = 2000) -> dict[str, float | list[float]]:
    """The median, its 95 % bootstrap interval, and the quartiles of the values themselves."""
    again = np.random.default_rng(0).choice(values, (draws, len(values)))
    return {
        "value": float(np.median(values)),
        "interval": np.quantile(np.median(again, axis=1), (0.025, 0.975)).tolist(),
        "quartiles": np.quantile(values, (0.25, 0.75)).tolist(),
    }
