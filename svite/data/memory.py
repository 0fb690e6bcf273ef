"""Images in memory: read by timm's readers, split once, augmented as a function of the step."""

import math
import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor

from svite.data.found import Found, Slice, find, opened, split_of
from svite.data.pixels import eight_bits
from svite.io.files import sha256
from svite.params.recipe import Recipe
from svite.sparsity.scoring import seeded

CHECKSUMS = "SHA256SUMS"


@dataclass(frozen=True)
class Split:
    """Images and the class of each."""

    images: UInt8[Tensor, "image channel height width"]
    labels: Int[Tensor, " image"]

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, images: int | None) -> "Split":
        """The first so many images (readers sort by class, so they are taken evenly over the split)."""
        if images is None or images >= len(self):
            return self
        chosen = evenly(len(self), images)
        return Split(self.images[chosen], self.labels[chosen])


def evenly(images: int, wanted: int) -> Int[Tensor, " image"]:
    """So many of the numbers of `images`, in order and at equal distances."""
    return torch.linspace(0, images - 1, wanted).long()


def refuse_damaged(folder: str | Path) -> None:
    """Compare a data folder with its SHA256SUMS, if it has one.

    Raises FileNotFoundError for a missing folder or file, ValueError for a damaged one; both say how to get it back.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"The data folder '{folder}' is missing; `make data` brings the bundled one back.")
    sums = folder / CHECKSUMS
    for line in sums.read_bytes().splitlines() if sums.is_file() else ():
        listed = re.fullmatch(rb"([0-9a-f]{64}) [ *](.+)", line)  # as sha256sum writes it
        if not listed:
            raise ValueError(f"{sums} is damaged: {line[:40]!r} is no checksum and name of a file.")
        expected, name = listed[1].decode(), os.fsdecode(listed[2])
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is missing; `dvc checkout --force data.dvc` brings it back.")
        if sha256(folder / name) != expected:
            raise ValueError(
                f"{folder / name} is damaged (its checksum differs); `dvc checkout --force data.dvc` restores it."
            )


def read_images(path: Path, channels: int, size: int) -> tuple[Split, Found]:
    """The images of a tar file or of class folders, resized to `size` pixels a side, and what was found there.

    Raises ValueError naming an image that can't be read, and for what `find` refuses.
    """
    found = find(path)
    images = np.stack([_pixels(each, channels, size) for each in found.images])
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    return Split(pixels, torch.tensor([each.label for each in found.images])), found


def _pixels(place: Slice, channels: int, size: int) -> UInt8[np.ndarray, "{size} {size} {channels}"]:
    try:
        with opened(place) as stored:
            image = eight_bits(stored, channels)
    except Exception as error:  # whatever a decoder raises at foreign bytes
        reason = str(error).split(" <")[0].partition("\n")[0] or type(error).__name__
        raise ValueError(f"{place} can't be read as an image ({reason}); mend it, or take it away.") from None
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image).reshape(size, size, channels)


class Data:
    """A data folder with `train`, `validation` and `test`, each a tar file or a folder of class folders.

    Without `validation`, a tenth of each training class is held out, chosen by a fixed seed. The test split is read
    only when it is asked for.

    Raises FileNotFoundError or ValueError for missing or damaged data.
    """

    def __init__(self, folder: str | Path, channels: int = 1, size: int = 28) -> None:
        refuse_damaged(folder)
        self.folder, self.channels, self.size = Path(folder), channels, size
        self.remarks: dict[str, list[str]] = {"train": [], "validation": []}  # what a person would not expect

    def _read(self, split: str) -> tuple[Split, list[str]]:  # and its classes
        path = split_of(self.folder, split)
        if path is None:
            raise FileNotFoundError(f"{self.folder} has no '{split}.tar' and no folder '{split}'.")
        images, found = read_images(path, self.channels, self.size)
        self.remarks[split] = found.remarks
        return images, found.classes

    @cached_property
    def _whole(self) -> tuple[Split, list[str]]:
        return self._read("train")

    def _alike(self, split: str) -> Split:
        found, names = self._read(split)
        if odd := sorted({*names} ^ {*self._whole[1]}):
            raise ValueError(f"'{split}' and 'train' of {self.folder} differ in their classes: {odd[0]}, for one.")
        return found

    @property
    def classes(self) -> int:
        """How many there are."""
        return len(self._whole[1])

    @cached_property
    def _training(self) -> tuple[Split, Split]:
        train = self._whole[0]
        if split_of(self.folder, "validation") is not None:
            return train, self._alike("validation")
        held = torch.zeros(len(train), dtype=torch.bool)
        for label in train.labels.unique().tolist():
            members = (train.labels == label).nonzero().flatten()
            order = torch.randperm(len(members), generator=seeded(0, 0, f"validation/{label}"))
            held[members[order[: len(members) // 10]]] = True
        if not held.any():
            raise ValueError(
                f"{self.folder} has no 'validation', and no class of 'train' has ten images to hold one out."
            )
        self.remarks["validation"] = ["a tenth of each class of 'train'"]
        parts = [Split(train.images[chosen], train.labels[chosen]) for chosen in (~held, held)]
        return parts[0], parts[1]

    @property
    def train(self) -> Split:
        """What weights are learned from."""
        return self._training[0]

    @property
    def validation(self) -> Split:
        """What choices are made on."""
        return self._training[1]

    @cached_property
    def test(self) -> Split:
        """What is looked at once, in the end."""
        return self._alike("test")

    @cached_property
    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel over the training images, pixels in 0..1."""
        pixels = self.train.images.double() / 255
        shape = (1, self.channels, 1, 1)
        return pixels.mean((0, 2, 3)).float().view(shape), pixels.std((0, 2, 3)).float().view(shape)

    def normalised(
        self, images: UInt8[Tensor, "image channel height width"]
    ) -> Float[Tensor, "image channel height width"]:
        """Images as a model sees them."""
        mean, deviation = self.moments
        return (images.float() / 255 - mean) / deviation


def augmented(
    pixels: UInt8[Tensor, "image channel height width"], recipe: Recipe, generator: torch.Generator
) -> UInt8[Tensor, "image channel height width"]:
    """Turn, zoom and shift each image by its own random amount; black comes in from outside."""
    count = len(pixels)

    def amount(limit: float) -> Tensor:
        return (torch.rand(count, generator=generator) * 2 - 1) * limit

    angle, scale = amount(math.radians(recipe.rotate)), 1 + amount(recipe.zoom)
    across, down = (amount(recipe.shift * 2 / side) for side in (pixels.shape[3], pixels.shape[2]))
    rows = [[angle.cos() * scale, -angle.sin() * scale, across], [angle.sin() * scale, angle.cos() * scale, down]]
    transform = torch.stack([torch.stack(row, 1) for row in rows], 1)
    grid = F.affine_grid(transform, list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels.float(), grid, align_corners=False).round_().to(torch.uint8)


def order(images: int, seed: int, epoch: int) -> Int[Tensor, " image"]:
    """The order in which an epoch visits the training images: a function of seed and epoch."""
    return torch.randperm(images, generator=seeded(seed, epoch, "order"))
