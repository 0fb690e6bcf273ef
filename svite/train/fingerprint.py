"""A few words for what images a run trains on, equal wherever they lie: other images are then found to be others."""

import hashlib
import os
from collections.abc import Iterable, Sequence, Sized
from pathlib import Path

from svite.train.data import Split
from svite.train.found import Found, Slice

Fingerprint = dict[str, str]  # of each class or shard


def of_files(found: Found, root: Path) -> Fingerprint:
    """Of each class: how many images and bytes, and a checksum of names and sizes. No file is read."""
    classes: dict[int, list[Slice]] = {}
    for image in found.images:
        classes.setdefault(image.label, []).append(image)
    return {found.classes[label]: _of_class(images, root) for label, images in sorted(classes.items())}


def _of_class(images: Sequence[Slice], root: Path) -> str:
    names = [f"{image.name or os.path.relpath(image.path, root)} {image.size}" for image in images]
    return f"{len(images):,} images of {sum(image.size for image in images):,} bytes ({checksum(sorted(names))})"


def of_shards(names: Iterable[str], sizes: Sequence[int], stored: Sequence[int]) -> Fingerprint:
    """Of each shard: how many samples, and of how many bytes where it lies on a disk (0 elsewhere)."""
    said = [
        f"{size:,} samples" + f" in {length:,} bytes" * (length > 0) for size, length in zip(sizes, stored, strict=True)
    ]
    return dict(zip(names, said, strict=True))


def of_rows(rows: Sized, classes: Iterable[str] | None) -> Fingerprint:
    """How many, of which classes, and Hugging Face's own fingerprint where it has one."""
    own = getattr(rows, "_fingerprint", "")
    return {"all": f"{len(rows):,} images of classes {checksum(classes or ())}" + f" ({own})" * bool(own)}


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
        digest.update((text.encode() if isinstance(text, str) else text) + b"\0")
    return digest.hexdigest()[:8]
