"""What a model sees of a stored image: timm's random views in training, the centre in evaluation.

A random view is a function of (seed, epoch, position in the epoch): not of the process that makes it.
"""

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image, ImageOps
from timm.data import create_transform, resolve_data_config
from timm.data.auto_augment import NAME_TO_OP
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate

from svite.data.cache import Unavailable
from svite.data.pixels import MODES, eight_bits
from svite.params.recipe import Views
from svite.sparsity.scoring import seeded
from svite.vit.cost import input_shape

Read = Callable[[Any], tuple[Image.Image, int]]
Transform = Callable[[Image.Image], Float[Tensor, "channel height width"]]


def config(model: nn.Module) -> dict[str, Any]:
    """What timm's transforms have to know of a model, its own image size and channels among it, and its classes."""
    return resolve_data_config({"input_size": input_shape(model)}, model=model) | {"classes": model.num_classes}


def _moments(config: Mapping[str, Any]) -> dict[str, tuple[float, ...]]:
    """Mean and deviation of each channel; the average over three colours for a model of another number of channels."""
    channels = config["input_size"][0]
    found = {name: tuple(config[name]) for name in ("mean", "std")}
    return {name: each if len(each) == channels else (fmean(each),) * channels for name, each in found.items()}


def posterize(image: Image.Image, bits: int, **_: object) -> Image.Image:
    """timm's operation, which asks for no bits at all at the highest magnitude: black, but an error since Pillow 13."""
    return ImageOps.posterize(image, min(bits, 8)) if bits > 0 else Image.new(image.mode, image.size)


NAME_TO_OP |= dict.fromkeys(("Posterize", "PosterizeIncreasing", "PosterizeOriginal"), posterize)


def training_view(views: Views, config: Mapping[str, Any]) -> Transform:
    """timm's random views, which draw from the global random numbers.

    Raises ValueError for words that timm does not know.
    """
    try:
        return create_transform(
            config["input_size"],
            is_training=True,
            scale=views.scale,
            hflip=views.flip,
            color_jitter=views.jitter or None,
            auto_augment=views.auto,
            interpolation=views.interpolation,
            re_prob=views.erase,
            re_mode="pixel",  # as in DeiT's recipe and timm's script
            **_moments(config),
        )
    except (AssertionError, KeyError, ValueError) as error:
        raise ValueError(f"recipe.views: timm knows no such views ({type(error).__name__}: {error}).") from None


def evaluation_view(config: Mapping[str, Any]) -> Transform:
    """timm's view for evaluation: the centre, always the same."""
    named = {name: config.get(name) for name in ("interpolation", "crop_pct", "crop_mode")}
    return create_transform(config["input_size"], **named, **_moments(config))


@contextmanager
def random_numbers_kept() -> Iterator[None]:
    """Let Python's, NumPy's and torch's global random numbers (on CPU) go on afterwards from where they were."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])


def seed_all(seed: int, epoch: int, position: int) -> None:
    """Make the global random numbers, from all of which timm's transforms draw, a function of the arguments."""
    number = seeded(seed, epoch, f"view/{position}").initial_seed()
    random.seed(number)
    np.random.seed(number % 2**32)  # noqa: NPY002
    torch.default_generator.manual_seed(number)  # torch.manual_seed would reach the GPU's too


class Wanted(NamedTuple):
    """A position of an epoch, and where its image is."""

    epoch: int
    position: int
    place: Any


class Seen(NamedTuple):
    """A view and its class, and where the image could not be read why; or those of a batch."""

    view: Float[Tensor, "*image channel height width"]
    label: int | Int[Tensor, " image"]
    trouble: str | list[str] = ""


class Viewed(Dataset):
    """What a worker holds: how to read an image, and how to look at it. Where images are, it is told with each."""

    def __init__(self, read: Read, transform: Transform, shape: tuple[int, int, int], seed: int) -> None:
        if shape[0] not in MODES:
            raise ValueError(f"The model takes images of {shape[0]} channels; files are read with 1 (grey) or 3 (RGB).")
        self.read, self.transform, self.shape, self.seed = read, transform, shape, seed

    def __getitems__(self, batch: list[Wanted]) -> list[Seen] | Unavailable:
        """A batch at once, as `DataLoader` asks for it; or why there is none, which it would bury in a traceback."""
        try:
            with random_numbers_kept():
                return [self.seen(wanted) for wanted in batch]
        except Unavailable as reason:
            return reason

    def seen(self, wanted: Wanted) -> Seen:
        """One view; the global random numbers are others afterwards."""
        try:
            image, label = self.read(wanted.place)
            with image:
                pixels = eight_bits(image, self.shape[0])
            if label is None or label < 0:
                raise ValueError("it has no class")
        except Unavailable:
            raise
        except Exception as error:  # whatever a decoder raises at foreign bytes
            return Seen(torch.zeros(self.shape), -1, str(error).split(" <")[0] or type(error).__name__)
        seed_all(self.seed, wanted.epoch, wanted.position)
        return Seen(self.transform(pixels), label)


def collate(batch: list[Seen] | Unavailable) -> Seen | Unavailable:
    """A batch as one `Seen`."""
    return batch if isinstance(batch, Unavailable) else default_collate(batch)
