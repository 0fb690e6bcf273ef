"""Images that are read from files as they are needed."""

from collections.abc import Generator, Iterator, Mapping
from itertools import count
from typing import Any
from weakref import finalize

import torch
from jaxtyping import Int
from torch import Tensor

from svite.data.cache import said
from svite.data.memory import evenly
from svite.data.shards import Shards
from svite.data.source import Batch, Share
from svite.data.stored import Stored, files, hugging_face, torchvision
from svite.data.views import Seen, Viewed, Wanted, evaluation_view, random_numbers_kept, training_view
from svite.data.workers import delivered
from svite.params.recipe import Images, Recipe

NAMED = 20  # images that can't be read
KINDS = {"": files, "torch": torchvision, "hfds": hugging_face, "shards": Shards}


def stored(images: Images, split: str) -> Stored:
    """A split of images in files, of whatever kind.

    Raises ValueError or FileNotFoundError, in one sentence, for a kind, a folder or a split that there is not.
    """
    what = f"'{split}' of {images.name or images.root}"
    kind = images.name.partition("/")[0]
    if kind not in KINDS:
        raise ValueError(f"data.name is '{images.name}'; it should be empty, 'shards', 'torch/...' or 'hfds/...'.")
    try:
        found = KINDS[kind](images, split)
    except FileNotFoundError:
        raise
    except Exception as error:  # each library has errors of its own
        raise ValueError(f"{what} can't be opened: {said(error)}") from error
    if not len(found):
        raise ValueError(f"{what} has no images.")
    return found


def refuse_other_classes(train: Stored, held: Stored, images: Images) -> None:
    """Raises ValueError where training and validation images have other classes."""
    if train.classes != held.classes:
        odd = sorted({*(train.classes or ())} ^ {*(held.classes or ())}) or ["their order"]
        raise ValueError(f"'{images.train}' and '{images.validation}' differ in their classes: {odd[0]}, for one.")


class Epochs:
    """Which image stands where in each epoch, as a function of the seed."""

    def __init__(self, train: Stored, recipe: Recipe, seed: int) -> None:
        self.train, self.recipe, self.seed = train, recipe, seed
        self.chosen = evenly(len(train), min(recipe.images or len(train), len(train)))

    def order(self, epoch: int) -> Int[Tensor, " image"]:
        """The images of an epoch, by their numbers in the split.

        With repeats, views of an image follow each other (and go to different processes), as timm's `RepeatAugSampler`
        has it; an epoch has as many views as without.
        """
        visited = self.train.order(self.chosen, self.seed, epoch)
        return visited.repeat_interleave(self.recipe.views.repeats)[: len(visited)]

    def positions(self, number: int, share: Share) -> range:
        """A process's share of a batch, as positions in the epoch."""
        return share.part(range(number * self.recipe.batch, (number + 1) * self.recipe.batch))

    @property
    def whole(self) -> int:
        """Whole batches of an epoch."""
        return len(self.chosen) // self.recipe.batch

    def wanted(self, epoch: int, first: int, share: Share) -> Iterator[list[Wanted]]:
        """A process's share of each batch, from one on and without end."""
        for now in count(epoch):
            order = self.order(now)
            for number in range(first, self.whole):
                self.train.expect(order[number * self.recipe.batch :])
                yield [Wanted(now, at, self.train.places[int(order[at])]) for at in self.positions(number, share)]
            first = 0


class Ahead:
    """The batches of the training, made ahead from wherever it is: while others validate too, across epochs."""

    def __init__(self, epochs: Epochs, viewed: Viewed, workers: int) -> None:
        self.epochs, self.viewed, self.workers = epochs, viewed, workers
        self.stream: Generator[Seen] | None = None
        self.next = (0, 0, Share())

    def take(self, epoch: int, number: int, share: Share) -> Seen:
        """A process's share of a batch; if it is not the one after the last, workers begin anew from there."""
        if self.stream is None or self.next != (epoch, number, share):
            self.close()
            self.stream = delivered(self.viewed, self.epochs.wanted(epoch, number, share), self.workers)
        stream, self.stream = self.stream, None  # none stays after an error
        seen, self.stream = next(stream), stream
        self.next = (epoch, number + 1, share) if number + 1 < self.epochs.whole else (epoch + 1, 0, share)
        return seen

    def close(self) -> None:
        """End the workers."""
        if self.stream is not None:
            self.stream.close()
        self.stream = None


class Loaded:
    """Images in files, and timm's random views of them; a batch is the same bytes whoever makes it.

    `skipped` are the images that could not be read and were left out, by name, with the reason. `model_config` is
    `views.config(model)`.

    Raises ValueError or FileNotFoundError for images that can't be had, Unavailable for shards that can't.
    """

    moments = None

    def __init__(self, images: Images, recipe: Recipe, seed: int, model_config: Mapping[str, Any]) -> None:
        self.images, self.recipe, self.skipped, self.said = images, recipe, {}, 0
        self.train, self.held = stored(images, images.train), stored(images, images.validation)
        refuse_other_classes(self.train, self.held, images)
        self.classes = len(self.train.classes) if self.train.classes else None
        self.told_apart = model_config.get("classes")
        shape = tuple(model_config["input_size"])
        self.training = Viewed(self.train.read, training_view(recipe.views, model_config), shape, seed)
        self.evaluation = Viewed(self.held.read, evaluation_view(model_config), shape, seed)
        self.epochs = Epochs(self.train, recipe, seed)
        self.ahead = Ahead(self.epochs, self.training, images.workers)
        finalize(self, self.ahead.close)  # a worker that the garbage collector ends is waited for, in vain

    def __len__(self) -> int:
        return len(self.epochs.chosen)

    def batches(self, epoch: int, first: int, share: Share) -> Iterator[Batch]:
        """A process's share of each whole batch of an epoch, from batch `first` on.

        Raises ValueError for an image that can't be read, if that is to be fatal; RuntimeError for a worker that died.
        """
        order, left = self.epochs.order(epoch), 0
        for number in range(first, self.epochs.whole):
            seen, positions = self.ahead.take(epoch, number, share), self.epochs.positions(number, share)
            self._refuse_labels(self.train, seen, order[list(positions)])
            for slot, position in enumerate(positions):
                if seen.trouble[slot]:
                    self._refuse(self.train.name(int(order[position])), seen.trouble[slot])
                    seen.view[slot], seen.label[slot] = self._another(order, epoch, position)
                    left += 1
            if number == self.epochs.whole - 1:
                self._tell(left, f"epoch {epoch + 1}")
            yield seen.view, seen.label

    def validation(self, share: Share) -> Iterator[Batch]:
        """A process's share of the validation images, in order and seen at the centre.

        Raises as `batches` does.
        """
        size = max(1, self.recipe.batch // self.recipe.accumulate // share.of)
        indices, left = share.part(torch.arange(len(self.held))), 0
        batches = delivered(self.evaluation, self._held(indices, size), self.images.workers)
        for part, seen in zip(indices.split(size), batches, strict=True):
            self._refuse_labels(self.held, seen, part)
            for index, trouble in zip(part.tolist(), seen.trouble, strict=True):
                if trouble:
                    self._refuse(self.held.name(index), trouble)
                    left += 1
            readable = torch.tensor([not trouble for trouble in seen.trouble])
            if readable.any():
                yield (seen.view, seen.label) if readable.all() else (seen.view[readable], seen.label[readable])
        self._tell(left, "validation")

    def _held(self, indices: Int[Tensor, " image"], size: int) -> Iterator[list[Wanted]]:
        for begin in range(0, len(indices), size):
            self.held.expect(indices[begin:])
            yield [Wanted(0, index, self.held.places[index]) for index in indices[begin : begin + size].tolist()]

    def _refuse(self, name: str, trouble: str) -> None:
        if self.images.unreadable == "fatal":
            raise ValueError(f"{name} can't be read as an image ({trouble}); data.unreadable: skip leaves such out.")
        self.skipped[name] = trouble

    def _refuse_labels(self, stored: Stored, seen: Seen, indices: Int[Tensor, " image"]) -> None:
        """Raise ValueError naming an image of a class that the model does not tell from others."""
        odd = (seen.label >= self.told_apart).nonzero() if self.told_apart else ()
        if len(odd):
            slot = int(odd[0])
            raise ValueError(
                f"{stored.name(int(indices[slot]))} is of class {int(seen.label[slot])}, counted from 0, and the model "
                f"tells {self.told_apart} apart; set model.num_classes, or mend the label."
            )

    def _another(self, order: Int[Tensor, " image"], epoch: int, position: int) -> tuple[Tensor, int]:
        """The next readable image of the epoch, in a view of this position's own."""
        with random_numbers_kept():
            for index in torch.cat([order[position + 1 :], order[:position]]).tolist():
                seen = self.training.seen(Wanted(epoch, position, self.train.places[index]))
                if not seen.trouble:
                    return seen.view, seen.label
        raise ValueError(f"No image of '{self.images.train}' in {self.images.root} can be read.")

    def _tell(self, left: int, when: str) -> None:
        """Say how many images were left out, and the names of those that had not been named before."""
        if not left:
            return
        news = [f"{name} ({trouble})" for name, trouble in self.skipped.items()][self.said :]
        self.said = len(self.skipped)
        more = f", and {len(news) - NAMED} more" if len(news) > NAMED else ""
        names = f": {', '.join(news[:NAMED])}{more}" if news else ""
        print(f"{left} images could not be read and were left out in {when}{names}.", flush=True)

    @property
    def fingerprint(self) -> dict[str, dict[str, str]]:
        """What images these are, in a few words a class or shard."""
        return {"train": self.train.fingerprint, "validation": self.held.fingerprint}

    @property
    def told(self) -> list[str]:
        """What was found, for people."""
        classes = f" of {self.classes:,} classes" if self.classes else ""
        splits = ((self.images.train, self.train), (self.images.validation, self.held))
        return ["; ".join([f"{name}: {len(split):,} images{classes}", *split.remarks]) for name, split in splits]
