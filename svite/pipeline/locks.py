"""What keeps two pipelines apart, and what a killed one leaves in a state to go on from."""

import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from svite.params.paths import repository

PIPELINE, DVC_LOCK, DVC_HOLDERS = ".scratch/pipeline.lock", ".dvc/tmp/lock", ".dvc/tmp/rwlock"  # of the repository
RECORD, COPY = Path("dvc.lock"), Path(".scratch/dvc.lock")


class PipelineError(Exception):
    """One sentence for a person."""


def pipeline() -> Path:
    """The lock of whatever pipeline runs in this repository, of whichever study: DVC runs one at a time."""
    return repository() / PIPELINE


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Hold this lock of the working tree; the system drops it however the process ends."""
    lock.parent.mkdir(exist_ok=True)
    with lock.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = lock.read_text()
            raise PipelineError(
                f"A pipeline already runs here (process {pid}): wait for it to end, or stop it."
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def forget_the_dead() -> None:
    """Remove DVC's own lock where a killed process left it; refuse where a live one holds it."""
    holders = repository() / DVC_HOLDERS
    if not holders.exists():
        return
    for pid in set(re.findall(r'"pid": (\d+)', holders.read_text())):
        if "dvc" in _command_line(int(pid)):
            raise PipelineError(f"`dvc` already runs here (process {pid}): wait for it to end.")
    holders.unlink()


def _command_line(pid: int) -> str:
    """What the process runs; nothing if there is none, or another has its number now."""
    import psutil

    try:
        return " ".join(psutil.Process(pid).cmdline())
    except psutil.Error:
        return ""


def keep_record() -> None:
    """Copy dvc.lock while no DVC process writes it: they write in place, over about a second."""
    COPY.parent.mkdir(exist_ok=True)
    with (repository() / DVC_LOCK).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        shutil.copy(RECORD, COPY)


def is_cut_short() -> bool:
    """Whether a kill while DVC wrote dvc.lock has left half of it."""
    return RECORD.exists() and not RECORD.read_text().endswith("\n")


def mend_record() -> None:
    """Take the last whole dvc.lock; without one, drop the entry in which the file breaks off."""
    if COPY.exists():
        shutil.copy(COPY, RECORD)
    else:
        whole = re.split(r"^(?=  \S+:$)", RECORD.read_text(), flags=re.MULTILINE)[:-1]
        RECORD.write_text("".join(whole) if len(whole) > 1 else "schema: '2.0'\n")
    print("dvc.lock had been cut short when it was last written, and is mended.")
