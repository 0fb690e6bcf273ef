"""Tiny models, batches and loops for the tests."""

import inspect
from collections.abc import Callable, Iterator

import svite  # noqa: F401  (before timm)

# isort: split
import timm.optim
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from svite import methods
from svite.sparsity.sparsifier import Sparsifier

CLASSES = 5
STEPS = 24
SHORT = range(10)  # with two of the updates that `made` asks for
DYNAMIC = ["set", "rigl", "svite", "srigl", "nm"]
PRUNING = ["snip", "omp", "gmp", "taylor"]
VIT = {
    "img_size": 12,
    "patch_size": 4,
    "in_chans": 1,
    "num_classes": CLASSES,
    "embed_dim": 16,
    "depth": 1,
    "num_heads": 2,
}


def vit(seed: int = 0, **arguments: object) -> nn.Module:
    """A Vision Transformer of some five thousand weights; the same for the same seed."""
    torch.manual_seed(seed)
    return timm.create_model("vit_tiny_patch16_224", **{**VIT, **arguments})


def small_model() -> nn.Module:
    """Two linear layers, the same at every call."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 6), nn.GELU(), nn.Linear(6, 4))


def batch(step: int, size: int = 8) -> tuple[Tensor, Tensor]:
    """Images and labels, a function of the step."""
    generator = torch.Generator().manual_seed(1000 + step)
    images = torch.randn(size, 1, 12, 12, generator=generator)
    return images, torch.randint(CLASSES, (size,), generator=generator)


def logits(model: nn.Module, images: Tensor) -> Tensor:
    """The model's output; a distilled model's two heads are averaged."""
    output = model(images)
    return output if isinstance(output, Tensor) else sum(output) / len(output)


def backward(model: nn.Module, step: int = 0) -> Tensor:
    """One backward pass; the loss."""
    images, labels = batch(step)
    loss = cross_entropy(logits(model, images), labels)
    loss.backward()
    return loss.detach()


def adamw(model: nn.Module) -> Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.05)


def sgd(model: nn.Module) -> Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)


def muon(model: nn.Module) -> Optimizer:
    return timm.optim.create_optimizer_v2(model, opt="muon", lr=0.02, weight_decay=0.05)


OPTIMIZERS: dict[str, Callable[[nn.Module], Optimizer]] = {"adamw": adamw, "sgd": sgd, "muon": muon}


def train(
    model: nn.Module, optimizer: Optimizer, sparsifier: Sparsifier | None, steps: range = range(STEPS)
) -> Iterator[float]:
    """Train by explicit calls; yields the loss after each whole step."""
    for step in steps:
        optimizer.zero_grad()
        loss = backward(model, step)
        if sparsifier:
            sparsifier.before_step(optimizer)
        optimizer.step()
        if sparsifier:
            sparsifier.after_step()
        yield float(loss)


def run(model: nn.Module, optimizer: Optimizer, sparsifier: Sparsifier | None, steps: range = range(STEPS)) -> None:
    """Train to the end."""
    for _ in train(model, optimizer, sparsifier, steps):
        pass


def made(method: str, model: nn.Module, density: float = 0.5, **arguments: object) -> Sparsifier:
    """A method on a model, changing its topology often: every 4 steps of a training of `STEPS`."""
    if method == "snip":
        backward(model)
        return methods.snip(model, density, **arguments)
    if method == "omp":
        return methods.omp(model, density, **arguments)
    if method == "s2vite":
        return methods.s2vite(model, density, density, STEPS, **{"interval": 4, **arguments})
    if method == "acdc":
        return methods.acdc(model, density, STEPS, **{"rounds": 3, **arguments})
    if method == "isomorphic":
        return methods.isomorphic(model, density, STEPS, **{"batches": 4, **arguments})
    if method == "taylor":
        return methods.taylor(model, density, STEPS, **{"batches": 4, "rounds": 3, **arguments})
    side = {"side": 4} if method == "block" else {}
    return getattr(methods, method)(model, density, STEPS, **{"interval": 4, **side, **arguments})


def needed(method: str) -> dict[str, object]:
    """The arguments that a method can't do without, but for the model."""
    values = {"density": 0.5, "heads": 0.5, "neurons": 0.5, "keep": 0.5, "steps": STEPS}
    taken = inspect.signature(getattr(methods, method)).parameters
    return {name: value for name, value in values.items() if name in taken}


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the model's state."""
    return {name: value.clone() for name, value in model.state_dict().items()}


def alive_of(sparsifier: Sparsifier) -> dict[str, Tensor]:
    """A copy of the masks."""
    return {name: alive.clone() for name, alive in sparsifier.masks.items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def dead_are_zero(sparsifier: Sparsifier) -> bool:
    """Whether every dead weight is exactly zero."""
    return all(not bool(weight[~sparsifier.masks[name]].any()) for name, weight in sparsifier.weights.items())
