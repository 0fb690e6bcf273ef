"""Writing files whole or not at all, and telling whether one is what it was."""

import hashlib
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

HOUR = 3600  # nobody writes one file for so long without a word


@contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place if the block succeeds, and is gone if it does not.

    What processes that were killed left in that folder an hour ago or more goes too.

    Raises OSError with the file's name and the reason, on a full disk say; what was there before is untouched then.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    except OSError as error:
        raise OSError(error.errno, f"{path} could not be written: {error.strerror or error}") from error
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


@cache  # once a process
def _sweep(folder: Path) -> None:
    for part in folder.glob(".*.part"):
        writer = re.fullmatch(r"\..+\.(\d+)\.part", part.name)
        if writer and not is_alive(int(writer[1])) and is_old(part):
            part.unlink(missing_ok=True)


def is_alive(process: int) -> bool:
    """Whether this machine runs a process of that number."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def is_old(path: Path) -> bool:
    """Whether nobody has written to what is the user's own for an hour: on another machine its writer may be alive."""
    with suppress(OSError):
        found = path.lstat()
        return found.st_uid == os.geteuid() and time.time() - found.st_mtime > HOUR
    return False


def write(path: str | Path, content: str | bytes) -> None:
    """Write a file whole or not at all."""
    with whole(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def sha256(path: str | Path) -> str:
    """The checksum of a file's content.

    Raises FileNotFoundError naming the file.
    """
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
