"""Checkpoints: whole or not at all, the last good one kept, written while training goes on, loaded without pickle."""

import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from svite.io.files import whole
from svite.params.recipe import shown

SHOWN = 3  # settings that differ; of a data set every class may


def on_cpu(state: Any) -> Any:
    """The same dictionaries and lists with every tensor copied to the CPU, so that training may go on changing it."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: on_cpu(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(on_cpu(value) for value in state)
    return state


def previous(path: str | Path) -> Path:
    """Where the checkpoint before the last one lies."""
    return Path(f"{path}.previous")


def save_checkpoint(path: str | Path, state: dict[str, Any]) -> None:
    """Put a checkpoint in the place of the last one, which becomes the previous one.

    A kill at any moment leaves the old one or the new one under `path`, never half of either.

    Raises OSError with the file's name and the reason; what was there before is untouched then.
    """
    path = Path(path)
    with whole(path) as temporary:
        with temporary.open("wb") as file:
            try:
                torch.save(state, file)
            except RuntimeError as error:  # torch's writer hides what the file said
                raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None
        if path.exists():
            with whole(previous(path)) as kept:
                _link(path, kept)


def _link(path: Path, other: Path) -> None:
    """Give a file a second name; where the file system knows none (FAT, some networks), a copy."""
    other.unlink(missing_ok=True)  # of a killed process that had this one's number
    try:
        os.link(path, other)
    except OSError:
        shutil.copyfile(path, other)


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """What `save_checkpoint` wrote; nothing in the file is executed.

    Raises ValueError for a truncated or foreign file.
    """
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"The checkpoint {path} is damaged ({reason}); delete it to train from the start.") from None
    if not isinstance(state, dict):
        raise _foreign(path)
    return state


def _foreign(path: str | Path) -> ValueError:
    return ValueError(
        f"The checkpoint {path} is no training run's; move it away, or delete it to train from the start."
    )


def last_good(path: str | Path) -> dict[str, Any] | None:
    """The newest checkpoint that can be read; None where there is none.

    A damaged one is told in one line if the previous one is good. Raises ValueError where that one is damaged too, or
    missing.
    """
    path = Path(path)
    if not path.is_file():
        return load_checkpoint(previous(path)) if previous(path).is_file() else None
    try:
        return load_checkpoint(path)
    except ValueError as error:
        if not previous(path).exists():
            raise
        state = load_checkpoint(previous(path))
        print(f"{str(error).split(';')[0]}; going on from the one before it.", flush=True)
        return state


def discard(path: str | Path) -> None:
    """Delete a finished run's checkpoints."""
    for each in (Path(path), previous(path)):
        each.unlink(missing_ok=True)


def remove_halves(path: str | Path) -> None:
    """Delete what kills left half-written; for one process, before any writes."""
    for left in Path(path).parent.glob(f".{escape(Path(path).name)}.*.part"):
        left.unlink(missing_ok=True)


class Writer:
    """Writes checkpoints in a thread, one at a time; training waits for the copy only."""

    def __init__(self, path: str | Path) -> None:
        self.path, self.begun = Path(path), time.monotonic()
        self._thread: threading.Thread | None = None
        self._failed: OSError | None = None

    @property
    def seconds_since(self) -> float:
        """How long ago the last write began."""
        return time.monotonic() - self.begun

    def save(self, state: dict[str, Any]) -> None:
        """Copy the state now, and write it while training goes on, after the write before it."""
        self.finish()
        self.begun = time.monotonic()
        thread = threading.Thread(target=self._write, args=(on_cpu(state),))
        thread.start()
        self._thread = thread  # only now: Ctrl-C may come before, and who waits for what was not started is told that

    def _write(self, state: dict[str, Any]) -> None:
        try:
            save_checkpoint(self.path, state)
        except OSError as error:
            self._failed = error

    def wait(self) -> None:
        """Until the file is there.

        Raises OSError where it could not be written.
        """
        if self._thread:
            self._thread.join()
        failed, self._thread, self._failed = self._failed, None, None
        if failed:
            raise failed

    def finish(self) -> None:
        """Wait; a write that failed is told in one line and no more, for the last good checkpoint stands."""
        try:
            self.wait()
        except OSError as error:
            print(f"No new checkpoint, training goes on: {error.strerror or error}", flush=True)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self.finish()


def changes(before: Any, now: Any, place: str = "") -> Iterator[str]:
    """Where two nested dictionaries of settings differ, in words."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in {**before, **now}:
            yield from changes(before.get(key), now.get(key), f"{place}.{key}" if place else str(key))
    elif before != now:
        yield f"{place} was {shown(before)} and is {shown(now)}"


def refuse_foreign(state: dict[str, Any], path: str | Path) -> None:
    """Raise ValueError for a file of torch's that no training run of svite's wrote."""
    if not all(isinstance(state.get(part), dict) for part in ("settings", "loop")):
        raise _foreign(path)


@contextmanager
def of_this_version(path: str | Path) -> Iterator[None]:
    """Where a checkpoint is loaded: raise ValueError for one whose parts are not those that a run has today."""
    try:
        yield
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(
            f"The checkpoint {path} is of another version of svite ({reason}); go on with that one, or delete it to "
            "train from the start."
        ) from None


def refuse_changed(before: dict[str, Any], now: dict[str, Any], path: str | Path) -> None:
    """Raise ValueError naming what differs between a checkpoint's settings and those of today."""
    different = list(changes(before, now))
    if different:
        more = f" and {len(different) - SHOWN} more" if len(different) > SHOWN else ""
        raise ValueError(
            f"The checkpoint {path} is of other settings: {', '.join(different[:SHOWN])}{more}; set them back, or "
            "delete it to train from the start."
        )
