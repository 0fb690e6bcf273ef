"""The training loop against one of timm's own pieces in the order of its train.py; what a checkpoint holds up."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import timm
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3, dispatch_clip_grad

from benchmarks.claim import Claim
from benchmarks.interleave import interleave
from svite.data.source import Batch, Share
from svite.params.recipe import Model, Recipe
from svite.params.run import Run
from svite.train.builders import fused
from svite.train.checkpoint import Writer
from svite.train.loop import Loop
from svite.vit.cost import input_shape

RECIPE = Recipe(epochs=1000, batch=16, optimizer="adamw", lr=5e-4, clip=1.0, ema=0.9999, interval=100)
EQUAL, SPARSE = 0.99, 1.03


class Fixed:
    """The same images in every batch: what is timed is the loop."""

    moments = classes = None
    fingerprint, told = {}, []  # of no files

    def __init__(self, name: str, images: int, batch: int) -> None:
        shape = input_shape(timm.create_model(name))
        self.images, self.pixels = images, torch.randn(batch, *shape, generator=torch.Generator().manual_seed(0))
        self.labels = torch.arange(batch) % 10

    def __len__(self) -> int:
        return self.images

    def batches(self, epoch: int, first: int, share: Share) -> Iterator[Batch]:
        """As many as an epoch has from `first` on."""
        for _ in range(first, self.images // len(self.labels)):
            yield share.part(self.pixels), share.part(self.labels)

    def validation(self, share: Share) -> Iterator[Batch]:
        """One batch."""
        yield share.part(self.pixels), share.part(self.labels)


class TimmLoop:
    """A step of timm's train.py: schedule, forward, backward, clip, step, average, and the loss for the log."""

    def __init__(self, name: str, recipe: Recipe, source: Fixed) -> None:
        self.model, self.recipe, self.updates = timm.create_model(name, num_classes=10).train(), recipe, 0
        rates = {"lr": recipe.lr, "weight_decay": recipe.weight_decay}
        self.optimizer = create_optimizer_v2(self.model, opt=recipe.optimizer, **rates, **fused(recipe.optimizer))
        self.schedule = CosineLRScheduler(self.optimizer, 100_000, t_in_epochs=False)
        self.average, self.total = ModelEmaV3(self.model, decay=recipe.ema), 0.0
        self.criterion = torch.nn.CrossEntropyLoss(label_smoothing=recipe.smoothing)
        self.images, self.labels = source.pixels, source.labels

    def advance(self) -> None:
        """One optimizer step."""
        loss = self.criterion(self.model(self.images), self.labels)
        loss.backward()
        dispatch_clip_grad(self.model.parameters(), self.recipe.clip, mode="norm")
        self.optimizer.step()
        self.updates += 1
        self.optimizer.zero_grad()
        self.average.update(self.model, step=self.updates)
        self.schedule.step_update(self.updates)
        self.total += loss.item() * len(self.images)


def ours(name: str, method: str, source: Fixed, recipe: Recipe = RECIPE) -> Loop:
    """The loop in the middle of training."""
    model = Model(name=name, num_classes=10)
    run = Run(method=method, density=0.3 if method != "dense" else 1.0, model=model, recipe=recipe)
    loop = Loop(run, source)
    loop.model.train()
    return loop


def measure(called: str, name: str, rounds: int) -> list[Claim]:
    """Dense and sparse beside timm's pieces; a sparse step is weighed as an interval of 100 holds steps and updates."""
    source = Fixed(name, RECIPE.batch * 100, RECIPE.batch)
    every = RECIPE.model_copy(update={"interval": 1})
    never = RECIPE.model_copy(update={"interval": 10**6})
    loops = {
        "timm": TimmLoop(name, RECIPE, source),
        "dense": ours(name, "dense", source),
        "ordinary": ours(name, "svite", source, never),
        "update": ours(name, "svite", source, every),
    }
    seconds = interleave({part: loop.advance for part, loop in loops.items()}, rounds)
    sparse = (99 * seconds["ordinary"] + seconds["update"]) / 100
    what = f"training loop of {called}, batch {RECIPE.batch}"
    return [
        Claim.of(f"{what}, dense, images a second", "x timm's pieces", seconds["timm"] / seconds["dense"], floor=EQUAL),
        Claim.of(f"{what}, sparse, averaged over 100 steps, time", "x dense", sparse / seconds["dense"], SPARSE),
        Claim.of(f"{what}, sparse, images a second", "x timm's pieces, dense", seconds["timm"] / sparse),
        *saving(called, loops["ordinary"], rounds),
    ]


def saving(called: str, loop: Loop, rounds: int) -> list[Claim]:
    """How long a checkpoint holds training up: the copy, against a step; and the write that goes on beside it."""
    with tempfile.TemporaryDirectory() as folder, Writer(Path(folder) / "run.ckpt") as writer:
        calls = {
            "step": loop.advance,
            "copy": lambda: writer.save({"settings": {}, "loop": loop.state_dict()}),
            "write": writer.finish,
        }
        seconds = interleave(calls, rounds, before={"copy": writer.finish})
    what = f"checkpoint of {called}, AdamW, average and masks"
    return [
        Claim.of(f"{what}: training waits", "steps", seconds["copy"] / seconds["step"], 1.0),
        Claim.of(f"{what}: written meanwhile", "steps", seconds["write"] / seconds["step"]),
    ]
