"""Images read from files: against a training step, which waits for them, and against timm's own loader."""

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
from PIL import Image
from timm.data import create_dataset, create_loader
from torch import nn

from benchmarks.claim import Claim
from benchmarks.interleave import interleave
from benchmarks.training import Training
from svite.data import views
from svite.data.loaded import Loaded
from svite.data.source import Batch, Share
from svite.params.recipe import Images, Recipe, Views

PLAIN = Views(scale=(0.5, 0.5), jitter=0, auto=None, erase=0)
SIZE = (500, 375)  # about the average of ImageNet
FLOOR_OF_TIMM, FLOOR_OF_STEP = 0.97, 1.0


def write_images(root: Path, images: int) -> None:
    """JPEG files of smooth noise, in two classes and two splits."""
    generator = np.random.default_rng(0)
    for split, label in ((split, label) for split in ("train", "validation") for label in "ab"):
        folder = root / split / label
        folder.mkdir(parents=True)
        for number in range(images // 2):
            coarse = Image.fromarray(generator.integers(0, 255, (75, 100, 3), dtype=np.uint8))
            coarse.resize(SIZE, Image.Resampling.BICUBIC).save(folder / f"{number}.jpg", quality=90)


def ours(root: Path, recipe: Recipe, config: dict) -> Iterator[Batch]:
    """Batches without end, made in this process: what one worker does."""
    source = Loaded(Images(root=str(root), workers=0), recipe, 0, config)
    for epoch in count():
        yield from source.batches(epoch, 0, Share())


def timms(root: Path, recipe: Recipe, config: dict) -> Iterator[Batch]:
    """The same views from timm's loader, as its training script makes it."""
    seen = recipe.views
    loader = create_loader(
        create_dataset("", root=str(root), split="train"),
        config["input_size"],
        recipe.batch,
        is_training=True,
        use_prefetcher=False,
        persistent_workers=False,
        num_workers=0,
        scale=seen.scale,
        hflip=seen.flip,
        color_jitter=seen.jitter,
        auto_augment=seen.auto,
        interpolation=seen.interpolation,
        re_prob=seen.erase,
        re_mode="pixel",
        mean=config["mean"],
        std=config["std"],
    )
    while True:
        yield from loader


def measure(name: str, build: Callable[[], nn.Module], rounds: int, batch: int = 64, trained: int = 16) -> list[Claim]:
    """A batch a turn, all in this process, so that a worker's time is counted whole; and a step on fewer images.

    timm's loader is met with plain views: those of a recipe cost what they happen to do, and hide what a loader adds.
    """
    training = Training(build(), trained)
    recipe, plain, config = Recipe(batch=batch), Recipe(batch=batch, views=PLAIN), views.config(training.model)
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), images=2 * batch)
        loaders = {
            "ours": ours(Path(folder), recipe, config),
            "plain": ours(Path(folder), plain, config),
            "timm": timms(Path(folder), plain, config),
        }
        calls = {who: partial(next, loader) for who, loader in loaders.items()}
        seconds = interleave(calls | {"step": training.step}, rounds)
    rate, step = batch / seconds["ours"], trained / seconds["step"]
    what = f"images that one worker reads, JPEG of {SIZE[0]} x {SIZE[1]}"
    return [
        Claim.of(f"{what}, plain views", "x timm's loader", seconds["timm"] / seconds["plain"], floor=FLOOR_OF_TIMM),
        Claim.of(what, f"x what one core trains of {name}", rate / step, floor=FLOOR_OF_STEP),
        Claim.of(what, "a second", rate),
    ]
