"""How much and when: functions from the optimizer step to a value, and from the step to yes or no."""

import math
import warnings
from bisect import bisect_right
from collections.abc import Callable, Collection, Sequence

from svite.sparsity.arguments import check

Schedule = Callable[[int], float]
Falling = Callable[[float, int], Schedule]  # from a value at step 0, and the step at which it is to have ended
Ramp = Callable[[float, float, int, int], Schedule]  # from a value to another, to a step and from a step
Trigger = Callable[[int], bool]


def constant(value: float, end: int | None = None) -> Schedule:
    """The same value at every step; of those that fall to an `end`, the one that does not.

    >>> constant(0.3)(17), constant(0.3, 10)(17)
    (0.3, 0.3)
    """
    return lambda step: value


def _progress(step: int, begin: int, end: int) -> float:
    if step >= end:
        return 1.0
    return 0.0 if step <= begin else (step - begin) / (end - begin)


def linear(start: float, stop: float, end: int, begin: int = 0) -> Schedule:
    """From `start` at step `begin` in a straight line to `stop` at step `end`, constant outside.

    >>> linear(0.0, 1.0, end=10)(5)
    0.5
    """
    return lambda step: start + (stop - start) * _progress(step, begin, end)


def straight(start: float, end: int) -> Schedule:
    """From `start` at step 0 in a straight line to zero at step `end`.

    >>> straight(0.5, end=80)(20)
    0.375
    """
    return linear(start, 0.0, end)


def cosine(start: float, end: int, stop: float = 0.0) -> Schedule:
    """Half a cosine from `start` at step 0 to `stop` at step `end` (arXiv 2106.04533, section 3.1).

    >>> round(cosine(0.5, end=80)(40), 3)
    0.25
    """
    return lambda step: stop + (start - stop) / 2 * (1 + math.cos(math.pi * _progress(step, 0, end)))


def cubic(start: float, stop: float, end: int, begin: int = 0) -> Schedule:
    """Fast at first, slow at last: the ramp of gradual magnitude pruning (arXiv 1710.01878, equation 1).

    >>> round(cubic(0.0, 0.9, end=100)(50), 4)
    0.7875
    """
    return lambda step: stop + (start - stop) * (1 - _progress(step, begin, end)) ** 3


def alternating(switches: Sequence[int]) -> Schedule:
    """0 before the first of these steps, which are in order, 1 from there to the second, and so on.

    >>> [alternating([2, 4, 5])(step) for step in range(7)]
    [0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0]
    """
    return lambda step: float(bisect_right(switches, step) % 2)


def every(interval: int, until: int) -> Trigger:
    """True at `interval` and each `interval` steps after it, up to `until`.

    Warns where that is never. Raises ValueError for an interval below one.
    """
    check(interval=interval)
    if 0 < until < interval:
        warnings.warn(
            f"The topology never changes: it may up to step {until}, and interval is {interval}.", stacklevel=4
        )
    return lambda step: interval <= step <= until and step % interval == 0


def ending(interval: int, last: int, begin: int = 1) -> Trigger:
    """True at `last` and each `interval` steps before it, down to `begin`.

    Raises ValueError for an interval below one.
    """
    check(interval=interval)
    return lambda step: begin <= step <= last and (last - step) % interval == 0


def among(steps: Collection[int]) -> Trigger:
    """True at these steps."""
    return lambda step: step in steps


def once(step: int = 0) -> Trigger:
    """True at one step only; 0 is the moment of construction."""
    return lambda now: now == step
