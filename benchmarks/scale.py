"""What a large model asks for, in seconds and bytes: the measured parts of the plan in docs/scale.md."""

import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import timm
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from benchmarks import memory
from benchmarks.claim import Claim
from benchmarks.interleave import interleave
from benchmarks.training import FOREVER, Training
from benchmarks.update import begin, next_step
from svite.methods import svite
from svite.train.checkpoint import save_checkpoint
from svite.vit.cost import input_shape

DENSITY = 0.5
UPDATE_SECONDS = 4.0
UPDATE, STORED, WRITTEN, KEPT = "topology update", "size of a checkpoint", "writing a checkpoint", "activations"


def measure(name: str, rounds: int) -> Iterator[Claim]:
    """Memory of a sparsifier, seconds of an update on one core, a checkpoint, and what an image keeps in bf16."""
    yield from memory.measure(name, runs=min(rounds, 3), density=DENSITY, batch=1)
    what = f"of {name}, density {DENSITY}"
    training = Training(timm.create_model(name), 1, partial(svite, density=DENSITY, steps=FOREVER, interval=1))
    begin(training)
    before = {"update": partial(next_step, training)}
    seconds = interleave({"update": training.before_step}, min(rounds, 10), before)["update"]
    yield Claim.of(f"{UPDATE} {what}", "s on one core", seconds, UPDATE_SECONDS)
    written = np.array([checkpoint(training) for _ in range(min(rounds, 5))])
    yield Claim.of(f"{STORED} {what}", "bytes", written[:, 0])
    yield Claim.of(f"{WRITTEN} {what}", "s", written[:, 1])
    images = np.array([activations(name)], dtype=float)
    yield Claim.of(f"{KEPT} of {name} in bf16, kept for the backward pass", "bytes an image", images)


def checkpoint(training: Training) -> tuple[int, float]:
    """Bytes of a checkpoint of weights, optimizer and sparsifier, and wall seconds until it lies on the disk here."""
    parts = ("model", "optimizer", "sparsifier")
    state = {part: getattr(training, part).state_dict() for part in parts}
    scratch = Path(".scratch")
    scratch.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        path, start = Path(folder) / "run.ckpt", time.monotonic()
        save_checkpoint(path, state)
        return path.stat().st_size, time.monotonic() - start


def activations(name: str) -> int:
    """Bytes that each further image of a batch makes autograd keep under bf16 autocast, shared storages once."""
    model = timm.create_model(name)
    two, three = (kept(partial(forward, model, images)) for images in (2, 3))
    return three - two


def forward(model: nn.Module, images: int) -> Tensor:
    """The logits of random images, autocast to bf16."""
    with torch.autocast("cpu", torch.bfloat16):
        return model(torch.randn(images, *input_shape(model)))


def kept(call: Callable[[], Tensor]) -> int:
    """Bytes of all storages that autograd keeps for the backward pass of what `call` gives."""
    tensors: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        tensors.append(tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        result = call()  # alive, and all that was kept with it: no address is used twice
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    del result
    return sum(storages.values())
