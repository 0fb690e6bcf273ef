"""Images that are read from files as they are needed, by processes that run ahead of the training."""

import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import count
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import DataLoader

from svite.recipe import Images, Recipe
from svite.train.cache import Unavailable
from svite.train.data import evenly
from svite.train.shards import Shards
from svite.train.source import Batch, Share
from svite.train.stored import Stored, files, hugging_face, torchvision
from svite.train.views import Seen, Viewed, Wanted, collate, evaluation_view, random_numbers_kept, training_view

KINDS = {"": files, "torch": torchvision, "hfds": hugging_face, "shards": Shards}
DIED = ("exited unexpectedly", "is killed by signal")  # in what torch says of a worker


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
        raise ValueError(f"{what} can't be opened: {str(error).strip() or type(error).__name__}") from error
    if not len(found):
        raise ValueError(f"{what} has no images.")
    return found


def refuse_other_classes(train: Stored, held: Stored, images: Images) -> None:
    """Raises ValueError where training and validation images have other classes."""
    if train.classes != held.classes:
        odd = sorted({*train.classes} ^ {*held.classes})
        raise ValueError(f"'{images.train}' and '{images.validation}' differ in their classes: {odd[0]}, for one.")


class Loaded:
    """Images in files, and timm's random views of them; a batch is the same bytes whoever makes it.

    `skipped` counts the images that could not be read and were left out. `model_config` is `views.config(model)`.

    Raises ValueError or FileNotFoundError for images that can't be had, Unavailable for shards that can't.
    """

    def __init__(self, images: Images, recipe: Recipe, seed: int, model_config: Mapping[str, Any]) -> None:
        self.images, self.recipe, self.seed, self.skipped = images, recipe, seed, 0
        self.train, self.held = stored(images, images.train), stored(images, images.validation)
        refuse_other_classes(self.train, self.held, images)
        self.chosen = evenly(len(self.train), min(recipe.images or len(self.train), len(self.train)))
        shape = tuple(model_config["input_size"])
        self.training = Viewed(self.train.read, training_view(recipe.views, model_config), shape, seed)
        self.evaluation = Viewed(self.held.read, evaluation_view(model_config), shape, seed)
        self.streams: dict[tuple[int, int, Share], Iterator[Seen]] = {}  # by the batch that each gives next

    def __len__(self) -> int:
        return len(self.chosen)

    def order(self, epoch: int) -> Int[Tensor, " image"]:
        """The images of an epoch, by their numbers in the split.

        With repeats, views of an image follow each other (and go to different processes), as timm's `RepeatAugSampler`
        has it; an epoch has as many views as without.
        """
        visited = self.train.order(self.chosen, self.seed, epoch)
        return visited.repeat_interleave(self.recipe.views.repeats)[: len(visited)]

    def batches(self, epoch: int, first: int, share: Share) -> Iterator[Batch]:
        """A process's share of each whole batch of an epoch, from batch `first` on.

        Raises ValueError for an image that can't be read, if that is to be fatal; RuntimeError for a worker that died.
        """
        size, whole = self.recipe.batch, len(self) // self.recipe.batch
        order, before = self.order(epoch), self.skipped
        stream = self.streams.pop((epoch, first, share), None)
        if stream is None:
            self.streams.clear()
            stream = delivered(self._loader(self.training, self._wanted(epoch, first, share)))
        for number in range(first, whole):
            seen = next(stream)
            for slot, position in enumerate(share.part(range(number * size, (number + 1) * size))):
                if seen.trouble[slot]:
                    self._refuse(self.train.name(int(order[position])), seen.trouble[slot])
                    seen.view[slot], seen.label[slot] = self._another(order, epoch, position)
            if number == whole - 1:
                self.streams[epoch + 1, 0, share] = stream  # workers go on while others validate
                self._tell(before, f"epoch {epoch + 1}")
            yield seen.view, seen.label

    def _wanted(self, epoch: int, first: int, share: Share) -> Iterator[list[Wanted]]:
        """This share's part of each batch, from one on and without end."""
        size = self.recipe.batch
        for now in count(epoch):
            order = self.order(now)
            for begin in range(first * size, len(order) - size + 1, size):
                self.train.expect(order[begin:])
                positions = share.part(range(begin, begin + size))
                yield [Wanted(now, at, self.train.places[int(order[at])]) for at in positions]
            first = 0

    def validation(self, share: Share) -> Iterator[Batch]:
        """A process's share of the validation images, in order and seen at the centre."""
        size = max(1, self.recipe.batch // self.recipe.accumulate // share.of)
        indices, before = share.part(torch.arange(len(self.held))), self.skipped
        parts = indices.split(size)
        for part, seen in zip(parts, delivered(self._loader(self.evaluation, self._held(indices, size))), strict=True):
            troubles = [(int(index), trouble) for index, trouble in zip(part, seen.trouble, strict=True) if trouble]
            for index, trouble in troubles:
                self._refuse(self.held.name(index), trouble)
            readable = torch.tensor([not trouble for trouble in seen.trouble])
            if readable.any():
                yield (seen.view[readable], seen.label[readable]) if troubles else (seen.view, seen.label)
        self._tell(before, "validation")

    def _held(self, indices: Int[Tensor, " image"], size: int) -> Iterator[list[Wanted]]:
        for begin in range(0, len(indices), size):
            self.held.expect(indices[begin:])
            yield [Wanted(0, index, self.held.places[index]) for index in indices[begin : begin + size].tolist()]

    def _loader(self, viewed: Viewed, wanted: Iterable[list[Wanted]]) -> DataLoader:
        workers = self.images.workers
        return DataLoader(
            viewed,
            batch_sampler=wanted,
            num_workers=workers,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # else the seed that it gives each worker is drawn from the training's
            worker_init_fn=_apart,
            multiprocessing_context=_forkserver() if workers else None,
        )

    def _refuse(self, name: str, trouble: str) -> None:
        if self.images.unreadable == "fatal":
            raise ValueError(f"{name} can't be read as an image ({trouble}); data.unreadable: skip leaves such out.")
        self.skipped += 1

    def _another(self, order: Int[Tensor, " image"], epoch: int, position: int) -> tuple[Tensor, int]:
        """The next readable image of the epoch, in a view of this position's own."""
        with random_numbers_kept():
            for index in torch.cat([order[position + 1 :], order[:position]]).tolist():
                seen = self.training.seen(Wanted(epoch, position, self.train.places[index]))
                if not seen.trouble:
                    return seen.view, seen.label
        raise ValueError(f"No image of '{self.images.train}' in {self.images.root} can be read.")

    def _tell(self, before: int, when: str) -> None:
        if self.skipped > before:
            print(f"{self.skipped - before} images could not be read and were left out in {when}.", flush=True)


def delivered(loader: DataLoader) -> Iterator[Seen]:
    """What workers deliver.

    Raises Unavailable for a shard that one could not have; RuntimeError, in one sentence, for a worker that died.
    """
    try:
        for seen in loader:
            if isinstance(seen, Unavailable):
                raise seen
            yield seen
    except (RuntimeError, ConnectionError, EOFError, FileNotFoundError) as error:  # the others: while it handed over
        if isinstance(error, RuntimeError) and not any(said in str(error) for said in DIED):
            raise
        raise RuntimeError(
            "A process that reads images has died, of too little memory most likely; take fewer data.workers, or give "
            "the machine (the container's /dev/shm too) more. The last checkpoint stands."
        ) from error


def _forkserver() -> Any:
    """Where workers come from: a process without threads, which has imported once what they need.

    To fork this one would not be safe beside its threads; a fresh interpreter takes seconds, each time.
    """
    context = torch.multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["svite.train.loaded"])
    return context


def _apart(worker: int) -> None:
    """Let no signal reach a worker that is meant for the training: it first saves, and then ends its workers."""
    os.setpgid(0, 0)
