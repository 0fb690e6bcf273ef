"""The training loop: one run, on one process or several, that a kill at any step does not change."""

import inspect
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from svite import methods
from svite.recipe import Recipe
from svite.sparsity.scoring import seeded
from svite.sparsity.sparsifier import Sparsifier
from svite.study import DENSE, HALF, Run
from svite.tokens import anneal
from svite.train import budget
from svite.train.data import Data, augmented, order
from svite.train.evaluate import accuracy, logits
from svite.train.progress import Progress
from svite.train.store import build, load_checkpoint, load_model, save_checkpoint
from svite.vit.cost import macs
from svite.vit.narrow import narrow

SECONDS_BETWEEN_CHECKPOINTS = 20.0
SHARES = ("density", "heads", "neurons", "keep")


@dataclass
class Trained:
    """What came of a run: the model, its sparsifier, one row an epoch, and the operations spent."""

    run: Run
    model: nn.Module
    sparsifier: Sparsifier | None
    epochs: list[dict[str, float | int]]
    images: int
    macs: float


def sparsify(run: Run, model: nn.Module, steps: int) -> Sparsifier | None:
    """The run's method on a model, given what it takes of steps, interval and seed; None for dense training.

    The run's density is whatever the method has to be told: the kept share of weights, heads and neurons, or tokens.
    """
    if run.method in (DENSE, HALF):
        return None
    method: Callable[..., Sparsifier] = getattr(methods, run.method)
    taken = inspect.signature(method).parameters
    offered = {"steps": steps, "interval": run.recipe.interval, "seed": run.seed}
    shares = {name for name in SHARES if name in taken and taken[name].default is inspect.Parameter.empty}
    arguments = {name: value for name, value in offered.items() if name in taken} | dict.fromkeys(shares, run.density)
    return method(model, **arguments)


def first_model(run: Run, start: str | Path | None) -> nn.Module:
    """A new model, or the trained one at `start`.

    Raises ValueError where that one is another model than the run's.
    """
    if start is None:
        return build(run.model)
    model, trained = load_model(start)
    if trained.model != run.model:
        raise ValueError(f"The model {start} is another than the run asks for; train a dense '{run.model.name}' first.")
    return model


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """timm's optimizer of that name.

    Raises ValueError for a name that timm does not know.
    """
    if recipe.optimizer not in list_optimizers():
        raise ValueError(f"recipe.optimizer: timm has no optimizer '{recipe.optimizer}'; try adamw, sgd or muon.")
    return create_optimizer_v2(model, opt=recipe.optimizer, lr=recipe.lr, weight_decay=recipe.weight_decay)


class Loop:
    """One run's state between steps; `step` is a function of it and of the step's number alone."""

    def __init__(self, run: Run, data: Data, start: str | Path | None = None) -> None:
        torch.set_num_threads(int(os.environ.get("SVITE_THREADS", "1")))
        self.run, self.data, self.recipe = run, data, run.recipe
        self.train = data.train.first(run.recipe.images)
        self.accelerator = Accelerator(cpu=not torch.cuda.is_available())
        torch.manual_seed(run.seed)
        model = first_model(run, start)
        model.to(self.accelerator.device)
        self.per_epoch = len(self.train) // self.recipe.batch
        if self.per_epoch < 1:
            raise ValueError(f"recipe.batch is {self.recipe.batch}, more than the {len(self.train)} training images.")
        self.epochs = budget.epochs(run, pretrained=start is not None)
        self.steps = self.epochs * self.per_epoch
        self.sparsifier = sparsify(run, model, self.steps)  # some methods add parameters, so the optimizer comes after
        if self.sparsifier:
            narrow(model, self.sparsifier)
        self.macs = macs(model)
        self.model, self.optimizer = self.accelerator.prepare(model, make_optimizer(model, self.recipe))
        warmup = round(self.recipe.warmup * self.steps)
        self.schedule = CosineLRScheduler(
            self.optimizer, max(self.steps - warmup, 1), warmup_t=warmup, warmup_prefix=True, t_in_epochs=False
        )
        self.step, self.spent, self.loss_sum, self.rows = 0, 0.0, 0.0, []

    def batch(self) -> tuple[Tensor, Tensor]:
        """This step's images and labels: this process's share of the global batch."""
        epoch, position = divmod(self.step, self.per_epoch)
        size = self.recipe.batch
        chosen = order(len(self.train), self.run.seed, epoch)[position * size : (position + 1) * size]
        generator = seeded(self.run.seed, self.step, "augmentation")
        images = augmented(self.train.images[chosen], self.recipe, generator)
        share = slice(self.accelerator.process_index, None, self.accelerator.num_processes)
        device = self.accelerator.device
        return self.data.normalised(images[share]).to(device), self.train.labels[chosen][share].to(device)

    def advance(self) -> None:
        """One optimizer step."""
        torch.manual_seed(self.run.seed * 1_000_003 + self.step)
        self.schedule.step_update(self.step)
        anneal(self.model, self.step / self.steps)
        images, labels = self.batch()
        loss = cross_entropy(self.model(images), labels, label_smoothing=self.recipe.smoothing)
        self.accelerator.backward(loss)
        self.spent += self.recipe.batch * budget.step_macs(self.macs, self.sparsifier, self.optimizer)
        if self.sparsifier:
            self.sparsifier.before_step(self.optimizer)
        if self.recipe.clip is not None:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        self.optimizer.step()
        if self.sparsifier:
            self.sparsifier.after_step()
        self.optimizer.zero_grad()
        self.loss_sum += float(loss.detach())
        self.step += 1

    def end_epoch(self) -> dict[str, float | int]:
        """Look at the validation images, and add one row."""
        found = accuracy(logits(self.plain_model, self.data, self.data.validation), self.data.validation.labels)
        sparsifier = self.sparsifier
        row = {
            "epoch": self.step // self.per_epoch,
            "step": self.step,
            "images": self.step * self.recipe.batch,
            "lr": self.optimizer.param_groups[0]["lr"],
            "train_loss": self.loss_sum / self.per_epoch,
            "validation_loss": found.loss,
            "validation_top1": found.top1,
            "density": sparsifier.density if sparsifier else 1.0,
            "itop": sparsifier.itop if sparsifier else 1.0,
            "fraction": sparsifier.fraction(self.step) if sparsifier else 0.0,
        }
        self.rows.append(row)
        self.loss_sum = 0.0
        return row

    @property
    def plain_model(self) -> nn.Module:
        """The model without what distributes it."""
        return self.accelerator.unwrap_model(self.model)

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs; random numbers are functions of seed and step."""
        return {
            "step": self.step,
            "spent": self.spent,
            "loss_sum": self.loss_sum,
            "rows": self.rows,
            "model": self.plain_model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "sparsifier": self.sparsifier.state_dict() if self.sparsifier else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.step, self.spent, self.loss_sum = state["step"], state["spent"], state["loss_sum"]
        self.rows = state["rows"]
        self.plain_model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.sparsifier:
            self.sparsifier.load_state_dict(state["sparsifier"])

    def fit(self, checkpoint: str | Path | None = None) -> Trained:
        """Train to the end, from `checkpoint` where there is one, saving there after each epoch and in long ones."""
        if checkpoint is not None and Path(checkpoint).exists():
            self.load_state_dict(load_checkpoint(checkpoint))
        progress, saved = Progress(self.epochs, self.step // self.per_epoch), time.monotonic()
        self.model.train()
        while self.step < self.steps:
            self.advance()
            epoch_ended = self.step % self.per_epoch == 0
            if epoch_ended:
                row = self.end_epoch()
                if self.accelerator.is_main_process:
                    progress.show(row["epoch"], row["train_loss"], row["validation_top1"], row["density"])
            due = epoch_ended or time.monotonic() - saved > SECONDS_BETWEEN_CHECKPOINTS
            if checkpoint is not None and due and self.accelerator.is_main_process:
                save_checkpoint(checkpoint, self.state_dict())
                saved = time.monotonic()
        images = self.steps * self.recipe.batch
        return Trained(self.run, self.plain_model, self.sparsifier, self.rows, images, self.spent)
