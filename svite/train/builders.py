"""The parts of a run, each made of its parameters: model, sparsifier, optimizer, schedule, average."""

import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import torch
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import nn

from svite.params import options
from svite.params.recipe import Recipe, near
from svite.params.run import DENSE, Run
from svite.sparsity.sparsifier import Sparsifier
from svite.train.models import build, load_model


def sparsify(run: Run, model: nn.Module, steps: int) -> Sparsifier | None:
    """The run's method on a model, given what it takes of steps, interval and seed; None for dense training.

    The run's density is whatever the method has to be told: the kept share of weights, heads and neurons, or tokens.
    Its options go before all of these.
    """
    if run.method == DENSE:
        return None
    method: Callable[..., Sparsifier] = getattr(import_module(f"svite.methods.{run.method}"), run.method)
    offered = {"steps": steps, "interval": run.recipe.interval, "seed": run.seed}
    arguments = {name: value for name, value in offered.items() if takes(run.method, name)}
    arguments |= dict.fromkeys(options.shares(run.method), run.density) | options.values(run.options)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The topology never changes")  # `told.unchanging` says it of a run
        return method(model, **arguments)


def takes(method: str, setting: str) -> bool:
    """Whether a method has an argument of that name."""
    return method != DENSE and setting in options.arguments(method)


def first_model(run: Run, start: str | Path | None) -> nn.Module:
    """A new model (with timm's pretrained weights, if the run says so), or the trained one at `start`.

    Raises ValueError where that one is another model than the run's.
    """
    if start is None:
        return build(run.model, pretrained=run.model.pretrained)
    model, trained = load_model(start)
    if trained.model != run.model:
        raise ValueError(f"The model {start} is another than the run asks for; train a dense '{run.model.name}' first.")
    return model


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """timm's optimizer of that name.

    Raises ValueError for a name that timm does not know.
    """
    if recipe.optimizer not in list_optimizers():
        said = near(recipe.optimizer, list_optimizers(), "optimizers")
        raise ValueError(f"recipe.optimizer: timm has no optimizer '{recipe.optimizer}'; {said}.")
    rates = {"lr": recipe.lr, "weight_decay": recipe.weight_decay, "layer_decay": recipe.layer_decay}
    return create_optimizer_v2(model, opt=recipe.optimizer, **rates, **fused(recipe.optimizer))


def fused(optimizer: str) -> dict[str, bool]:
    """Torch's fused step where it has one: on Intel, MKL's square root takes ten times as long over zeros."""
    return {"fused": True} if optimizer in ("adam", "adamw") else {}


def make_schedule(optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int) -> CosineLRScheduler:
    """A linear rise over the first share of the steps, then half a cosine down."""
    warmup = round(recipe.warmup * steps)
    times = {"t_initial": max(steps - warmup, 1), "warmup_t": warmup, "warmup_prefix": True, "t_in_epochs": False}
    return CosineLRScheduler(optimizer, lr_min=recipe.lr_min, **times)


class Average:
    """timm's moving average of the weights, as sparse as the model."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.ema, self.updates = ModelEmaV3(model, decay=decay), 0

    @property
    def model(self) -> nn.Module:
        """The averaged model."""
        return self.ema.module

    def follow(self, model: nn.Module, sparsifier: Sparsifier | None) -> None:
        """After a step."""
        self.ema.update(model)
        if sparsifier and len(sparsifier.updates) > self.updates:
            self.keep_sparse(sparsifier)

    def keep_sparse(self, sparsifier: Sparsifier | None) -> None:
        """What died leaves the average at once; else it would live on there, smaller and smaller."""
        if sparsifier:
            sparsifier.apply(self.model)
            self.updates = len(sparsifier.updates)
