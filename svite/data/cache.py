"""Files from elsewhere, fetched whole into a folder of bounded size that processes share."""

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import fsspec
from filelock import FileLock

FILES_AT_LEAST = 4  # that must have room: one that is read, two that are fetched ahead, one still in use
BLOCK = 1 << 22


class Unavailable(RuntimeError):
    """A file that can't be had or is not what it should be, in one sentence."""


def said(error: Exception) -> str:
    """What an error says, in one line."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def default_folder() -> Path:
    """Where the system keeps what can be fetched again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "svite"


def is_local(url: str) -> bool:
    """Whether a path or URL is of a file system of this machine."""
    return "://" not in url and "::" not in url


@dataclass(frozen=True)
class Cache:
    """The files used last, up to `limit` bytes in all. One is fetched once, however many processes ask, and never
    again while it is here; what stands at its URL should not change.
    """

    folder: Path
    limit: int

    def path(self, url: str) -> Path:
        """Where the file is or will be: in place if it is local."""
        if is_local(url):
            return Path(url)
        return self.folder / "files" / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{url.rsplit('/', 1)[-1]}"

    def open(self, url: str) -> BinaryIO:
        """The file, fetched if it is not here. What is open stays readable when it has to make room.

        Raises Unavailable.
        """
        path = self.path(url)
        while True:
            try:
                file = path.open("rb")
            except FileNotFoundError:
                self.fetch(url)
                continue
            if not is_local(url):
                os.utime(file.fileno())  # used now
            return file

    def fetch(self, url: str) -> None:
        """Bring the file here, unless it is or another process does.

        Raises Unavailable.
        """
        path = self.path(url)
        if is_local(url):
            raise Unavailable(f"{url} is missing.")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / f"{path.name}.lock"):
                if not path.exists():
                    self._copy(url, path)
        except Unavailable:
            raise
        except Exception as error:  # every kind of storage has errors of its own
            raise Unavailable(f"{url} could not be fetched into {self.folder}: {said(error)}") from error

    def _copy(self, url: str, path: Path) -> None:
        system, remote = fsspec.url_to_fs(url)
        size, part = system.size(remote) or 0, path.with_name(f".{path.name}.part")
        self._reserve(part, size, url)
        try:
            with system.open(remote, "rb") as source, part.open("r+b") as target:
                shutil.copyfileobj(source, target, BLOCK)
                if size and target.tell() != size:
                    raise Unavailable(f"{url} has {size} bytes, of which {target.tell()} came.")
            with self._room:
                part.replace(path)
        except BaseException:
            with self._room:
                part.unlink(missing_ok=True)
            raise

    @property
    def _room(self) -> FileLock:
        """For whoever adds up what is here, or changes it."""
        return FileLock(self.folder / "room.lock")

    def _reserve(self, part: Path, size: int, url: str) -> None:
        """Make room for a file by removing those used longest ago (what is being fetched last), and take it at once."""
        if FILES_AT_LEAST * size > self.limit:
            raise Unavailable(
                f"{url} has {size / 1e9:.2g} GB, and data.cache_gigabytes is {self.limit / 1e9:g}; "
                f"there should be room for {FILES_AT_LEAST} such files."
            )
        with self._room:
            part.unlink(missing_ok=True)  # what a killed process left
            files = [(file, file.stat()) for file in part.parent.iterdir()]
            total = size + sum(found.st_size for _, found in files)
            for file, found in sorted(files, key=lambda each: (each[0].suffix == ".part", each[1].st_mtime)):
                if total <= self.limit:
                    break
                file.unlink()
                total -= found.st_size
            part.touch()
            os.truncate(part, size)
