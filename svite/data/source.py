"""Where the images of a run come from: what the loop asks, and its answer for images in memory."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from svite.data.fingerprint import of_pixels
from svite.data.memory import Data, augmented, order
from svite.params.recipe import Recipe
from svite.sparsity.scoring import seeded

Moments = tuple[Float[Tensor, "1 channel 1 1"], Float[Tensor, "1 channel 1 1"]]  # mean, standard deviation
Batch = tuple[Float[Tensor, "image channel height width"], Int[Tensor, " image"]]
Sequenced = TypeVar("Sequenced")


@dataclass(frozen=True)
class Share:
    """One process's part of what all processes do together."""

    rank: int = 0
    of: int = 1

    def part(self, everything: Sequenced) -> Sequenced:
        """This process's items: one of every `of`, beginning with number `rank`."""
        return everything[self.rank :: self.of]


@runtime_checkable
class Source(Protocol):
    """Images, as a function of (seed, epoch, number of the batch) and of nothing else: not of how many processes."""

    moments: Moments | None  # what their colours are normalised by, if not as timm says of the model
    classes: int | None  # how many there are, if that is known

    @property
    def fingerprint(self) -> dict[str, dict[str, str]]:
        """What images these are, by split, in a few words each: a checkpoint of others is refused."""

    @property
    def told(self) -> list[str]:
        """What was found, for people, a line a split."""

    def __len__(self) -> int:
        """Training images an epoch."""

    def batches(self, epoch: int, first: int, share: Share) -> Iterator[Batch]:
        """A process's share of each whole batch of an epoch, from batch `first` on."""

    def validation(self, share: Share) -> Iterator[Batch]:
        """A process's share of the validation images: each image once over all processes."""


class InMemory:
    """A `Data` folder's images, turned, zoomed and shifted."""

    def __init__(self, data: Data, recipe: Recipe, seed: int) -> None:
        self.data, self.recipe, self.seed = data, recipe, seed
        self.train, self.moments, self.classes = data.train.first(recipe.images), data.moments, data.classes

    @property
    def fingerprint(self) -> dict[str, dict[str, str]]:
        """What images these are, in a few words a class."""
        return {"train": of_pixels(self.data.train), "validation": of_pixels(self.data.validation)}

    @property
    def told(self) -> list[str]:
        """What was found, for people."""
        splits = {"train": self.train, "validation": self.data.validation}
        return [
            "; ".join([f"{name}: {len(split):,} images of {self.classes:,} classes", *self.data.remarks[name]])
            for name, split in splits.items()
        ]

    def __len__(self) -> int:
        return len(self.train)

    def batches(self, epoch: int, first: int, share: Share) -> Iterator[Batch]:
        """A process's share of each whole batch of an epoch, from batch `first` on."""
        size, whole = self.recipe.batch, len(self) // self.recipe.batch
        visited = order(len(self), self.seed, epoch)
        for number in range(first, whole):
            chosen = visited[number * size : (number + 1) * size]
            generator = seeded(self.seed, epoch * whole + number, "augmentation")
            images = augmented(self.train.images[chosen], self.recipe, generator)
            yield self.data.normalised(share.part(images)), share.part(self.train.labels[chosen])

    def validation(self, share: Share, batch: int = 250) -> Iterator[Batch]:
        """A process's share of the validation images, in order."""
        held = self.data.validation
        parts = zip(share.part(held.images).split(batch), share.part(held.labels).split(batch), strict=True)
        yield from ((self.data.normalised(images), labels) for images, labels in parts)
