"""How a training run ends before its time: asked to, or with a loss that is no number."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from svite.train.checkpoint import last_good
from svite.train.finite import Diverged


class Stopped(Exception):
    """Training was asked to end, and has saved where it is."""


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
