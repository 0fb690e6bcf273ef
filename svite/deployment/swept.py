"""What processes that were killed left behind."""

import atexit
import os
import re
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from svite.io.files import is_alive, is_old

_PREFIX = "svite-kernels-"


def folder_of_this_process() -> Path:
    """A temporary folder that goes when the process ends.

    Raises OSError where there is no place for one.
    """
    own = tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-")
    atexit.register(shutil.rmtree, own, ignore_errors=True)
    return Path(own)


def sweep(folder: Path) -> None:
    """Remove what was left half-written in this folder, and temporary folders, an hour ago or more.

    Of the latter those of processes that are dead: others may not have loaded yet what is in theirs.
    """
    for part in folder.glob("*.part"):
        if is_old(part):
            with suppress(OSError):  # a folder, or another user's
                part.unlink()
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        process = re.match(rf"{_PREFIX}(\d+)-", left.name)
        if process and not is_alive(int(process[1])) and is_old(left):
            shutil.rmtree(left, ignore_errors=True)
