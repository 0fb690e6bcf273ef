"""Tar files looked at whole before they are believed: Python reads one that is cut short as if it ended there."""

import tarfile
from io import BufferedReader
from pathlib import Path

BLOCK = 1 << 20


def files_of(path: str | Path) -> list[tuple[str, str]]:
    """The names of the files in a tar file, and in the tar files in it, with what they are, if they are no plain ones.

    Raises ValueError for one that can't be read, has no end, or goes on behind it, and for tar files deeper in it.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is no file.")
    with path.open("rb") as file:
        return _names(file, str(path))


def _names(file: BufferedReader, archive: str, inside: bool = False) -> list[tuple[str, str]]:
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            names, inner = [], []
            for member in tar:
                if member.isfile() and member.name.lower().endswith(".tar"):
                    inner.append(member.name)
                elif not member.isdir():
                    names.append((member.name, "" if member.isfile() else "links and devices"))
            refuse_endless(tar)
            if inside and inner:  # timm looks into a tar file in a tar file, and no deeper
                raise ValueError(f"{archive}/{inner[0]} lies too deep for its images to be found; unpack {archive}.")
            return names + [name for each in inner for name in _names(tar.extractfile(each), f"{archive}/{each}", True)]
    except (tarfile.TarError, EOFError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{archive} can't be read as a tar file ({reason}); copy it again.") from None


def refuse_endless(tar: tarfile.TarFile) -> None:
    """ReadError for an archive, read to its end, without the two blocks of zeros there, or with more behind them."""
    file = tar.fileobj
    file.seek(tar.offset)
    end = file.read(2 * tarfile.BLOCKSIZE)
    if len(end) < 2 * tarfile.BLOCKSIZE or any(end):
        raise tarfile.ReadError("it is cut short, or damaged in its middle, for it has no end")
    while more := file.read(BLOCK):
        if any(more):
            raise tarfile.ReadError("it goes on behind its end, where nothing would be read")
