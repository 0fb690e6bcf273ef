"""A few words for what images a run trains on, equal wherever they lie: other images are then found to be others."""

import hashlib
import os
from collections.abc import Iterable, Sequence, Sized
from pathlib import Path

import numpy as np

from svite.data.found import Found, Slice
from svite.data.memory import Split, evenly

Fingerprint = dict[str, str]  # of each class or shard
SEEN = 1_000  # images of a split that are looked into, and one of each class in any case
BLOCKS, BLOCK = 16, 4096  # and what is read of each: all of a short one, blocks at equal distances of a long one


def of_files(found: Found, root: Path) -> Fingerprint:
    """Of each class: its number, how many images and bytes, and a checksum of names, sizes, and what is in some."""
    classes: dict[int, list[Slice]] = {}
    for image in found.images:
        classes.setdefault(image.label, []).append(image)
    some = max(1, SEEN // len(classes))
    return {found.classes[label]: _of_class(images, root, some) for label, images in sorted(classes.items())}


def _of_class(images: Sequence[Slice], root: Path, some: int) -> str:
    names = [f"{image.name or os.path.relpath(image.path, root)} {image.size}" for image in images]
    chosen = evenly(len(images), min(some, len(images))).tolist()
    inside = [glimpse(images[at].path, images[at].offset, images[at].size) for at in chosen]
    return (
        f"class {images[0].label}, {len(images):,} images of {sum(image.size for image in images):,} bytes "
        f"({checksum([*names, *inside])})"
    )


def glimpse(path: str | Path, offset: int, size: int) -> bytes:
    """Some of what is in a file; nothing of one that can't be read, for who needs it will say so."""
    try:
        with open(path, "rb") as file:
            parts = []
            for start in range(0, size, max(BLOCK, size // BLOCKS)):
                file.seek(offset + start)
                parts.append(file.read(min(BLOCK, size - start)))
            return b"".join(parts)
    except OSError:
        return b""


def of_shards(names: Iterable[str], sizes: Sequence[int], stored: Sequence[Path | None]) -> Fingerprint:
    """Of each shard: how many samples and, where it lies on a disk, of how many bytes, with a checksum of some."""
    return {name: f"{size:,} samples{_of_shard(path)}" for name, size, path in zip(names, sizes, stored, strict=True)}


def _of_shard(path: Path | None) -> str:
    if path is None:
        return ""
    size = path.stat().st_size
    return f" in {size:,} bytes ({checksum([glimpse(path, 0, size)])})"


def of_rows(rows: Sized, classes: Iterable[str] | None) -> Fingerprint:
    """How many, of which classes, and Hugging Face's own fingerprint or, of torchvision's, a checksum of some rows."""
    own = getattr(rows, "_fingerprint", None) or checksum(_inside(rows))
    return {"all": f"{len(rows):,} images of classes {checksum(classes or ())} ({own})"}


def _inside(rows: Sized) -> Iterable[str | bytes]:
    yield np.asarray(getattr(rows, "targets", ())).tobytes()
    for at in evenly(len(rows), min(BLOCKS, len(rows))).tolist():
        try:
            image, label = rows[at]
            yield f"{label} {image.size}"
            yield np.asarray(image).tobytes()
        except Exception as error:  # whatever a decoder raises; who trains on it will say so
            yield type(error).__name__


def of_pixels(split: Split) -> Fingerprint:
    """Of each class: how many images, and a checksum of their pixels."""
    found = {}
    for label in split.labels.unique().tolist():
        images = split.images[split.labels == label]
        found[f"class {label}"] = f"{len(images):,} images ({checksum([images.numpy().tobytes()])})"
    return found


def checksum(texts: Iterable[str | bytes]) -> str:
    """Eight letters for a sequence of texts."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(os.fsencode(text) + b"\0")
    return digest.hexdigest()[:8]
