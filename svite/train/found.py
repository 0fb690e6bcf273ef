"""What lies in class folders and tar files of them: images, and files that are none, which are told."""

import os
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from timm.data.readers.img_extensions import get_img_extensions, set_img_extensions
from timm.data.readers.reader_image_folder import ReaderImageFolder
from timm.data.readers.reader_image_in_tar import ReaderImageInTar

from svite.train.archives import files_of
from svite.train.pixels import ENDINGS, FORMATS

ODD = {stat.S_IFIFO: "pipes", stat.S_IFSOCK: "sockets", stat.S_IFCHR: "devices", stat.S_IFBLK: "devices"}


class Slice(NamedTuple):
    """Bytes of a file that are an image, and its class."""

    path: str
    label: int
    offset: int = 0
    size: int = -1
    name: str = ""

    def __str__(self) -> str:
        return f"{self.path}/{self.name}" if self.name else self.path


def opened(place: Slice) -> Image.Image:
    """An image that is still to be decoded."""
    with open(place.path, "rb") as file:
        file.seek(place.offset)
        return Image.open(BytesIO(file.read(place.size)), formats=FORMATS)


@dataclass
class Found:
    """Images in a fixed order, the names of their classes, and how many other files of what kind, in what folders."""

    images: list[Slice]
    classes: list[str]
    others: Counter[str] = field(default_factory=Counter)
    folders: set[str] = field(default_factory=set)

    def leave_out(self, path: str, kind: str = "") -> None:
        """One file more that is no image."""
        self.others[kind or os.path.splitext(path)[1].lower() or "no ending"] += 1
        self.folders.add(os.path.dirname(path))

    @property
    def left_out(self) -> str:
        """What to say of the others; nothing where there are none."""
        files, folders = self.others.total(), len(self.folders)
        kinds = ", ".join(kind for kind, _ in self.others.most_common(10))
        return f"{_several(files, 'file')} in {_several(folders, 'folder')} left out ({kinds})" if files else ""


def _several(count: int, thing: str) -> str:
    return f"{count:,} {thing}{'s' * (count != 1)}"


def find(path: Path) -> Found:
    """The images of a folder of class folders or of a tar file of them, as timm sorts them.

    Raises ValueError for a tar file that is not whole, for fewer than two classes and where there are no images;
    OSError for a folder that can't be read.
    """
    found = _in_folders(path) if path.is_dir() else _in_tar(path)
    if len(found.classes) < 2:
        raise ValueError(
            f"{path} has images of {_several(len(found.classes), 'class')}, where at least two are wanted, each in a "
            "folder of its own."
        )
    return found


def _in_folders(path: Path) -> Found:
    with _all_endings():
        try:
            reader = ReaderImageFolder(str(path))
        except RuntimeError:  # it has found none
            raise ValueError(f"{path} has no images in class folders.") from None
    seen = [(Slice(image, label, 0, size), odd) for image, label in reader.samples for odd, size in (_look(image),)]
    found = Found([image for image, odd in seen if not odd], [*reader.class_to_idx])
    for image, odd in seen:
        if odd:
            found.leave_out(image.path, odd)
    images = {image.path for image, _ in seen}
    for folder, _, names in os.walk(path, followlinks=True, onerror=_raise):
        for file in (os.path.join(folder, name) for name in names):
            if file not in images:
                found.leave_out(file)
    return found


def _look(path: str) -> tuple[str, int]:
    """What a file is, if it is no plain one, and its size."""
    try:
        seen = os.stat(path)
    except FileNotFoundError:
        return "links to nothing", 0
    return "" if stat.S_ISREG(seen.st_mode) else ODD.get(stat.S_IFMT(seen.st_mode), "no file"), seen.st_size


def _raise(error: OSError) -> None:
    raise error


def _in_tar(path: Path) -> Found:
    names = files_of(path)
    others = [name for name in names if os.path.splitext(name)[1].lower() not in ENDINGS]
    if len(others) == len(names):
        raise ValueError(f"{path} has no images.")
    with _all_endings():
        reader = ReaderImageInTar(str(path), cache_tarinfo=False)  # a remembered index may be of another archive
    images = [
        Slice(str(path), int(label), image.offset_data + (tar.offset_data if tar else 0), image.size, image.name)
        for (image, _, tar), label in zip(reader.samples, reader.targets, strict=True)
    ]
    found = Found(images, [*reader.class_name_to_idx])
    for name in others:
        found.leave_out(name)
    return found


@contextmanager
def _all_endings() -> Iterator[None]:
    """Let timm's readers take every ending of the formats that are read."""
    before = get_img_extensions()
    set_img_extensions(sorted(ENDINGS))
    try:
        yield
    finally:
        set_img_extensions(before)
