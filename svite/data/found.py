"""What lies in class folders and tar files of them: images, and files that are none, which are told."""

import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from errno import ELOOP, ENOENT
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from timm.data.readers.img_extensions import get_img_extensions, set_img_extensions
from timm.data.readers.reader_image_folder import ReaderImageFolder
from timm.data.readers.reader_image_in_tar import ReaderImageInTar
from timm.utils.misc import natural_key

from svite.data.archives import files_of
from svite.data.pixels import ENDINGS, FORMATS

HIDDEN = "hidden"
SHOWN = 10  # names of files or folders, kinds
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
    """Images in a fixed order, the names of their classes, and how many other files of what kind, in what folders.

    `empty` are innermost folders without any.
    """

    images: list[Slice]
    classes: list[str]
    others: Counter[str] = field(default_factory=Counter)
    folders: set[str] = field(default_factory=set)
    empty: list[str] = field(default_factory=list)

    def leave_out(self, path: str, kind: str = "") -> None:
        """One file more that is no image."""
        self.others[kind or os.path.splitext(path)[1].lower() or "no ending"] += 1
        self.folders.add(os.path.dirname(path))

    @property
    def remarks(self) -> list[str]:
        """What a person would not expect: files left out, folders without images, and classes of several folders."""
        files, kinds = self.others.total(), [kind for kind, _ in self.others.most_common()]
        said = []
        if files:
            said += [f"{_several(files, 'file')} in {_several(len(self.folders), 'folder')} left out ({_some(kinds)})"]
        if self.empty:
            said += [f"{_several(len(self.empty), 'folder')} without images ({_some(self.empty)})"]
        if divided := self._divided():
            classes = f"{len(divided):,} classes have" if divided[1:] else "a class has"
            said += [f"{classes} several folders of one name ({_some(divided[0])})"]
        return said

    def _divided(self) -> list[list[str]]:
        """The folders of each class that has several: it is called after the innermost."""
        folders: dict[int, dict[str, None]] = {}
        for image in self.images:
            folders.setdefault(image.label, {})[os.path.dirname(image.name or image.path)] = None
        return [[*each] for each in folders.values() if len(each) > 1]


def _several(count: int, thing: str) -> str:
    return f"{count:,} {thing}{'s' * (count != 1)}"


def _some(names: Sequence[str]) -> str:
    return ", ".join([*names[:SHOWN], *["..."] * (len(names) > SHOWN)])


def split_of(root: Path, split: str) -> Path | None:
    """The folder or the tar file of a split, if there is one.

    Raises ValueError where there are both.
    """
    there = [path for path in (root / split, root / f"{split}.tar") if path.exists()]
    if len(there) > 1:
        raise ValueError(f"{root} has a folder '{split}' and a '{split}.tar'; take one of them away.")
    return next(iter(there), None)


def find(path: Path) -> Found:
    """The images of a folder of class folders or of a tar file of them, as timm sorts them.

    Raises ValueError for a tar file that is not whole, for fewer than two classes, for images outside of class folders,
    for folders that are there twice and where there are no images; OSError for a folder that can't be read.
    """
    found = _in_folders(path) if path.is_dir() else _in_tar(path)
    stray = next((image for image in found.images if found.classes[image.label] in ("", ".")), None)
    if stray:
        raise ValueError(f"{stray} lies outside of the class folders; move it into that of its class, or away.")
    if len(found.classes) < 2:
        raise ValueError(
            f"{path} has images of {_several(len(found.classes), 'class')}, where at least two are wanted, each in a "
            "folder of its own."
        )
    return found


def _in_folders(path: Path) -> Found:
    walked = [*_walk(path)]
    with _all_endings():
        try:
            reader = ReaderImageFolder(str(path))
        except RuntimeError:  # it has found none
            raise ValueError(f"{path} has no images in class folders.") from None
    names = {label: name for name, label in reader.class_to_idx.items()}
    seen = [(image, names[label], *_look(image, path)) for image, label in reader.samples]
    found = _arranged([(Slice(image, 0, 0, size), name) for image, name, odd, size in seen if not odd])
    for image, _, odd, _ in seen:
        if odd:
            found.leave_out(image, odd)
    images, full = {image for image, *_ in seen}, {os.path.dirname(image.path) for image in found.images}
    for folder, inner, files in walked:
        for file in (os.path.join(folder, name) for name in files):
            if file not in images:
                found.leave_out(file)
        if not inner and folder not in full:
            found.empty.append(os.path.relpath(folder, path))
    return found


def _arranged(images: Sequence[tuple[Slice, str]]) -> Found:
    """Images with the names of their classes in timm's order; where it takes names for equal (`cat`, `Cat`), letter by
    letter, for timm leaves these to chance."""
    classes = sorted({name for _, name in images}, key=_natural)
    labels = {name: label for label, name in enumerate(classes)}
    labelled = [image._replace(label=labels[name]) for image, name in images]
    return Found(sorted(labelled, key=lambda image: (_natural(image.name or image.path), image.offset)), classes)


def _natural(name: str) -> tuple[list[str | int], str]:
    return natural_key(name), name


def _walk(path: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """Each folder with the names of the folders and files in it; links are followed, but not to where they were."""
    first: dict[str, str] = {}
    for folder, inner, names in os.walk(path, followlinks=True, onerror=_raise):
        before = first.setdefault(os.path.realpath(folder), folder)
        if before != folder:
            raise ValueError(f"{folder} is {before} once more, by a link, and images would count twice; take it away.")
        inner.sort()  # and so are those visited next
        yield folder, inner, names


def _look(path: str, root: Path) -> tuple[str, int]:
    """What a file is, if it is no plain one that can be seen, and its size."""
    if _hidden(os.path.relpath(path, root)):
        return HIDDEN, 0
    try:
        seen = os.stat(path)
    except OSError as error:
        if error.errno not in (ENOENT, ELOOP):
            raise
        return "links to nothing", 0
    return "" if stat.S_ISREG(seen.st_mode) else ODD.get(stat.S_IFMT(seen.st_mode), "no file"), seen.st_size


def _hidden(path: str) -> bool:
    """Whether a file is beside what people see: a Mac's `._cat.jpg` and `__MACOSX`, a notebook's checkpoints."""
    return any(step == "__MACOSX" or (step.startswith(".") and step not in (".", "..")) for step in path.split("/"))


def _raise(error: OSError) -> None:
    raise error


def _in_tar(path: Path) -> Found:
    members = files_of(path)
    if all(kind or os.path.splitext(name)[1].lower() not in ENDINGS for name, kind in members):
        raise ValueError(f"{path} has no images.")
    with _all_endings():
        reader = ReaderImageInTar(str(path), cache_tarinfo=False)  # a remembered index may be of another archive
    names = {label: name for name, label in reader.class_name_to_idx.items()}
    seen = [
        (Slice(str(path), 0, image.offset_data + (tar.offset_data if tar else 0), image.size, image.name), names[label])
        for (image, _, tar), label in zip(reader.samples, reader.targets.tolist(), strict=True)
    ]
    found = _arranged([(image, name) for image, name in seen if not _hidden(image.name)])
    for name, kind in members:
        if kind or os.path.splitext(name)[1].lower() not in ENDINGS or _hidden(name):
            found.leave_out(name, kind or (HIDDEN if _hidden(name) else ""))
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
