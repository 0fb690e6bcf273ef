"""The files of a run: where they lie, proved writable before the first step, and one run's at a time."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from errno import EEXIST
from pathlib import Path

from accelerate import Accelerator
from filelock import FileLock, Timeout

from svite.params.run import DENSE, Run
from svite.train.checkpoint import previous, remove_halves
from svite.train.processes import everywhere


def outputs(run: Run, folder: str | Path) -> dict[str, Path]:
    """What a run leaves below `folder`: its model, its metrics, and a table for each of its curves."""
    tables = ("epochs",) if run.method == DENSE else ("epochs", "updates", "layers")
    return {
        "model": Path(folder) / "models" / f"{run.key}.safetensors",
        "metrics": Path(folder) / "metrics" / "train" / f"{run.key}.json",
    } | {name: Path(folder) / "curves" / name / f"{run.key}.csv" for name in tables}


@contextmanager
def exclusive(run: Run, folder: str | Path, checkpoint: str | Path, accelerator: Accelerator) -> Iterator[None]:
    """Hold the files of a run for all its processes, the first of which writes them.

    The lock is the system's (flock), so it ends with the process, however that ends; a kill leaves an empty file behind
    that stops nobody. Between machines it holds where the file system passes locks on: NFS does, with its lock daemon.

    Raises OSError, in all processes and before anything is trained, where another run holds them or one of them can't
    be written.
    """
    paths = [*outputs(run, folder).values(), Path(checkpoint), previous(checkpoint)]
    refusal = None
    with _tidied(paths), ExitStack() as stack:
        if accelerator.is_main_process:
            try:
                for place in sorted({Path(folder) / ".scratch", Path(checkpoint).parent}):
                    stack.enter_context(_alone(place / f"{run.key}.lock"))
                for path in paths:
                    prove(path)
            except OSError as error:
                refusal = str(error)
        if refusal := everywhere(accelerator, refusal)[0]:
            raise OSError(refusal)
        yield


@contextmanager
def _tidied(paths: list[Path]) -> Iterator[None]:
    """Folders that are not there yet leave no trace where nothing comes to lie in them."""
    missing = {parent for path in paths for parent in path.parents if not os.path.lexists(parent)}
    try:
        yield
    finally:
        for parent in sorted(missing, reverse=True):
            with suppress(OSError):
                parent.rmdir()


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        holding = FileLock(lock, blocking=False).acquire()
    except Timeout:
        raise OSError(
            f"Another process trains {lock.stem} already ({lock} is locked); wait for it to end, or give this run "
            "another folder or name."
        ) from None
    except OSError as error:
        raise _unwritable(lock, error) from None
    with holding:
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)  # while it is held: who opened it before finds that it has no name any more


def prove(path: Path) -> None:
    """Write beside `path` what the writing of that file will, and take it away again, with what killed runs left.

    Raises OSError naming the file and the reason.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")  # as svite.io.files writes it
    try:
        if path.is_dir():
            raise FileExistsError(EEXIST, "", str(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
        part.unlink()
    except OSError as error:
        raise _unwritable(path, error) from None
    remove_halves(path)


def _unwritable(path: Path, error: OSError) -> OSError:
    reason = f"{error.filename} is in its way" if isinstance(error, FileExistsError) else error.strerror or error
    return OSError(f"{path} can't be written: {reason}.")
