"""How a training run ends before its time: asked to, with a loss that is no number, or without memory."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from svite.params.recipe import Recipe
from svite.train.checkpoint import last_good
from svite.train.nonfinite import Diverged


class Stopped(BaseException):
    """Training was asked to end, and has saved where it is. No error: whoever handles all of those lets it pass."""


@contextmanager
def until_asked(end: Callable[[], None]) -> Iterator[None]:
    """Call `end` where SIGTERM asks to. (Signals reach the main thread only.)"""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: end())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def naming_the_last_good(checkpoint: str | Path | None, wait_for_everyone: Callable[[], None]) -> Iterator[None]:
    """Let Diverged, which all processes raise together, say where training can go on from."""
    try:
        yield
    except Diverged as error:
        wait_for_everyone()  # the one that writes has written
        state = last_good(checkpoint) if checkpoint is not None else None
        stands = f"The last good checkpoint is {checkpoint}, after step {state['loop']['step']}." if state else ""
        raise Diverged(f"{error} {stands or 'There is no checkpoint before it.'}") from None


@contextmanager
def naming_the_batch(recipe: Recipe, processes: int) -> Iterator[None]:
    """Let a step for which there is too little memory say how many images it had at a time, and what would need less.

    Raises MemoryError in the place of torch's own errors.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _is_of_memory(error):
            raise
        share = recipe.batch // processes
        parts = [
            n
            for n in range(recipe.accumulate + 1, share + 1)
            if share % n == 0 and not (recipe.mixing and share // n % 2)
        ]
        instead = f"recipe.accumulate={parts[0]} has {share // parts[0]}, to the same effect" if parts else "take fewer"
        raise MemoryError(
            f"There is too little memory for a step of {share // recipe.accumulate} images at a time; {instead}; the "
            "last checkpoint stands."
        ) from error


def _is_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
