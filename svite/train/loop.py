"""The training loop: one run, on one process or several, that a kill at any step does not change."""

import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from svite.data.source import Source
from svite.params.device import threads
from svite.params.run import Run
from svite.sparsity.sharded import at_rest
from svite.sparsity.sparsifier import Sparsifier
from svite.tokens import anneal
from svite.train import budget, sharding, told
from svite.train.builders import Average, first_model, make_optimizer, make_schedule, sparsify
from svite.train.checkpoint import Writer, last_good, of_this_version, refuse_changed, refuse_foreign, remove_halves
from svite.train.ending import Stopped, naming_the_batch, naming_the_last_good, until_asked
from svite.train.evaluate import validated
from svite.train.nonfinite import LOSS, Diverged, first_layer, first_parameter
from svite.train.objective import Labels, Objective, Pixels
from svite.train.processes import accelerator_of_this_machine, everywhere, refuse_disagreement, share_of, together
from svite.train.progress import Progress
from svite.vit.cost import macs
from svite.vit.narrow import narrow

SECONDS_BETWEEN_CHECKPOINTS = 20.0
HALF_PRECISION = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Trained:
    """What came of a run: the model, its sparsifier, one row an epoch, and the operations spent."""

    run: Run
    model: nn.Module
    sparsifier: Sparsifier | None
    epochs: list[dict[str, float | int]]
    images: int
    macs: float


class Loop:
    """One run's state between steps; `step` is a function of it and of the step's number alone.

    Raises ValueError for what does not go together in a run, before anything is trained.
    """

    def __init__(self, run: Run, source: Source, start: str | Path | None = None, shard: bool = False) -> None:
        torch.set_num_threads(threads())
        self.run, self.source, self.recipe, self.start = run, source, run.recipe, start
        self.accelerator = accelerator_of_this_machine()
        self.sharded = shard and self.accelerator.num_processes > 1
        self.share, device = share_of(self.accelerator), self.accelerator.device
        self.per_epoch = self._checked_steps()
        self.steps = self.recipe.epochs * self.per_epoch
        torch.manual_seed(run.seed)
        model = first_model(run, start).to(device)
        if (source.classes or 0) > model.num_classes:
            raise ValueError(
                f"The images are of {source.classes} classes, and model.num_classes is {model.num_classes}."
            )
        self.average = Average(model, self.recipe.ema) if self.recipe.ema and self.sharded else None  # it copies plain
        if self.sharded:
            for each in (model, self.average.model) if self.average else (model,):
                sharding.shard(each, device, self.share.of)
        self.sparsifier = sparsify(run, model, self.steps)  # some methods add parameters, so the optimizer comes after
        if self.sparsifier:
            narrow(model, self.sparsifier)
        if self.recipe.ema:
            self.average = self.average or Average(model, self.recipe.ema)
            self.average.keep_sparse(self.sparsifier)
        self.plain_model, self.spending = model, budget.Spending(macs(model))
        at_rest(model)
        self.objective = Objective(self.recipe, model, device, self.source.moments)
        self.optimizer = make_optimizer(model, self.recipe)
        self.schedule = make_schedule(self.optimizer, self.recipe, self.steps)
        compiled = torch.compile(model) if self.recipe.compile else model
        self.model = compiled if self.sharded else self.accelerator.prepare_model(compiled)
        half = HALF_PRECISION.get(self.recipe.precision)
        self.autocast = torch.autocast(device.type, half, enabled=half is not None)
        self.scaler = torch.amp.GradScaler(device.type, enabled=half is torch.float16)
        self.step, self.skipped, self.spent, self.loss_sum, self.rows = 0, 0, 0.0, 0.0, []
        self.loss, self.batches = 0.0, self._from_here_on()
        self.saving = self.stopping = self.asked_to_end = False

    def _checked_steps(self) -> int:
        batch, processes, parts = self.recipe.batch, self.share.of, self.recipe.accumulate
        if len(self.source) < batch:
            raise ValueError(f"recipe.batch is {batch}, more than the {len(self.source)} training images.")
        if batch % (processes * parts) or (self.recipe.mixing and batch // processes % 2):
            even = "an even number of images each, " if self.recipe.mixing else ""
            raise ValueError(f"recipe.batch is {batch}; it does not divide into {even}{processes} x {parts} parts.")
        return len(self.source) // batch

    def _from_here_on(self) -> Iterator[tuple[Pixels, Labels]]:
        while True:
            yield from self.source.batches(*divmod(self.step, self.per_epoch), self.share)

    def advance(self) -> None:
        """One optimizer step; afterwards all processes know alike whether to save or to stop.

        Raises Diverged, in all, where the loss is not finite; the weights are those before this step then.
        """
        images, labels = (tensor.to(self.accelerator.device, non_blocking=True) for tensor in next(self.batches))
        seed = (self.run.seed * 1_000_003 + self.step) * self.share.of + self.share.rank
        torch.manual_seed(seed)
        images, labels = self.objective.mixed(images, labels, seed)
        self.schedule.step_update(self.step)
        anneal(self.model, self.step / self.steps)
        agreed = together(self.accelerator, self._backward(images, labels), self.saving, self.asked_to_end)
        self.loss, self.saving, self.stopping = agreed[0], agreed[1] > 0, agreed[2] > 0
        if not math.isfinite(self.loss):
            with self.autocast:
                layers = everywhere(self.accelerator, first_layer(self.plain_model, images))
            layer = next((layer for layer in layers if layer != LOSS), LOSS)
            raise Diverged(
                f"The loss is {self.loss} at step {self.step}, in epoch {self.step // self.per_epoch + 1}; the first "
                f"layer whose output is not finite is {layer}."
            )
        self._update()
        self.loss_sum += self.loss
        self.spent += self.spending.step(self.sparsifier, self.optimizer, self.recipe.batch)
        self.step += 1

    def _backward(self, images: Pixels, labels: Labels) -> Float[Tensor, ""]:
        """Gradients of this process's mean loss, averaged over all; and that loss."""
        parts, total = self.recipe.accumulate, torch.zeros((), device=images.device)
        for part, chunk in enumerate(zip(images.chunk(parts), labels.chunk(parts), strict=True), 1):
            with nullcontext() if part == parts else self.accelerator.no_sync(self.model):
                with self.autocast:
                    loss = self.objective(self.model(chunk[0]), *chunk) / parts
                self.scaler.scale(loss).backward()
            total += loss.detach()
        return total

    def _update(self) -> None:
        self.scaler.unscale_(self.optimizer)
        updates = len(self.sparsifier.updates) if self.sparsifier else 0
        if self.sparsifier:
            self.sparsifier.before_step(self.optimizer)
            if len(self.sparsifier.updates) > updates:
                refuse_disagreement(self.accelerator, self.sparsifier, self.step)
        if self.recipe.clip is not None:
            nn.utils.clip_grad_norm_(self.plain_model.parameters(), self.recipe.clip)
        self.scaler.step(self.optimizer)
        scale = self.scaler.get_scale()
        self.scaler.update()
        self.skipped += self.scaler.get_scale() < scale
        if self.sparsifier:
            self.sparsifier.after_step()
        if self.average:
            self.average.follow(self.plain_model, self.sparsifier)
        self.optimizer.zero_grad()

    @property
    def judged(self) -> nn.Module:
        """The model that counts: the average where there is one."""
        return self.average.model if self.average else self.plain_model

    def end_epoch(self) -> dict[str, float | int]:
        """Look at the validation images, and add one row."""
        found = validated(self.judged, self.source.validation(self.share), self.accelerator)
        sparsifier = self.sparsifier
        row = {
            "epoch": self.step // self.per_epoch,
            "step": self.step,
            "images": self.step * self.recipe.batch,
            "lr": max(group["lr"] for group in self.optimizer.param_groups),  # of the last layer, where they decay
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

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs, on however many processes; random numbers are functions of seed and step.

        Where parameters are sharded all processes have to ask, and the first one is given them.
        """
        here = self.accelerator.is_main_process
        return {
            "step": self.step,
            "skipped": self.skipped,
            "spent": self.spent,
            "loss_sum": self.loss_sum,
            "rows": list(self.rows),
            "model": sharding.gathered(self.plain_model.state_dict(), here),
            "optimizer": sharding.gathered(self.optimizer.state_dict(), here),
            "scaler": self.scaler.state_dict(),
            "average": sharding.gathered(self.average.model.state_dict(), here) if self.average else None,
            "sparsifier": self.sparsifier.state_dict() if self.sparsifier else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.step, self.skipped = state["step"], state["skipped"]
        self.spent, self.loss_sum = state["spent"], state["loss_sum"]
        self.rows, self.batches = list(state["rows"]), self._from_here_on()
        sharding.load_weights(self.plain_model, state["model"])
        sharding.load_optimizer(self.optimizer, state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.sparsifier:
            self.sparsifier.load_state_dict(state["sparsifier"])
        if self.average:
            sharding.load_weights(self.average.model, state["average"])

    def resume(self, checkpoint: str | Path, settings: dict[str, Any]) -> None:
        """Go on from the newest checkpoint that can be read, if there is one.

        Raises ValueError for one of other settings, naming what differs, and for one that no such run has written.
        """
        if self.accelerator.is_main_process:
            remove_halves(checkpoint)
        state = last_good(checkpoint)
        if state is not None:
            refuse_foreign(state, checkpoint)
            refuse_changed(state["settings"], settings, checkpoint)
            with of_this_version(checkpoint):
                self.load_state_dict(state["loop"])

    def fit(self, checkpoint: str | Path | None = None, settings: dict[str, Any] | None = None) -> Trained:
        """Train to the end, from `checkpoint` where there is one, saving there after each epoch and in long ones.

        `settings` are what the run is a function of, and are kept in the checkpoint. Raises ValueError for one of other
        settings; Diverged; Stopped, having saved, where the process was asked to terminate (SIGTERM).
        """
        settings = settings or {}
        if checkpoint is not None:
            self.resume(checkpoint, settings)
        self.settings = settings
        writer = Writer(checkpoint) if checkpoint is not None and self.accelerator.is_main_process else None
        progress = Progress(self.recipe.epochs, self.step / self.per_epoch, self.accelerator.is_main_process)
        if self.accelerator.is_main_process and (said := told.unchanging(self.run, self.sparsifier, self.steps)):
            print(said, flush=True)
        self.model.train()
        with (
            naming_the_last_good(checkpoint, self.accelerator.wait_for_everyone),
            until_asked(self.end),
            writer or nullcontext(),
        ):
            while self.step < self.steps:
                self._go_on(writer, progress)
        self._tell_skipped()
        images = self.steps * self.recipe.batch
        return Trained(self.run, *self.finished(), self.rows, images, self.spent)

    def _tell_skipped(self) -> None:
        if self.skipped and self.accelerator.is_main_process:
            print(
                f"{self.skipped} of {self.steps} steps were skipped, their gradients too large for "
                f"{self.recipe.precision}."
            )

    def end(self) -> None:
        """Ask for an end after the step that is under way, of all processes."""
        self.asked_to_end = True

    def finished(self) -> tuple[nn.Module, Sparsifier | None]:
        """The model that counts and its sparsifier, whole in every process."""
        if not self.sharded:
            return self.judged, self.sparsifier
        weights = sharding.gathered(self.judged.state_dict())
        model = first_model(self.run, self.start)
        sparsifier = sparsify(self.run, model, self.steps)
        if sparsifier:
            sparsifier.load_state_dict(self.sparsifier.state_dict())
        model.load_state_dict(weights)
        return model, sparsifier

    def _refuse_broken_weights(self) -> None:
        """Raise Diverged before weights that are no numbers are kept: they would pass for the last good ones."""
        broken = next(filter(None, everywhere(self.accelerator, first_parameter(self.plain_model))), None)
        if broken:
            raise Diverged(f"After step {self.step - 1} {broken} is not finite, though the loss was; it is not saved.")

    def _go_on(self, writer: Writer | None, progress: Progress) -> None:
        """One step, and what is due after it."""
        self.saving = bool(writer) and writer.seconds_since > SECONDS_BETWEEN_CHECKPOINTS
        with naming_the_batch(self.recipe, self.share.of):
            self.advance()
        ended = self.step % self.per_epoch == 0
        self.saving = self.saving or ended
        if self.saving or self.stopping:
            self._refuse_broken_weights()
        if ended:
            row = self.end_epoch()
            progress.show(row["epoch"], row["train_loss"], row["validation_top1"], row["density"])
        else:
            progress.tick(self.step / self.per_epoch, self.loss)
        if (self.saving or self.stopping) and (writer or self.sharded):
            state = self.state_dict()
            if writer:
                writer.save({"settings": self.settings, "loop": state})
        if self.stopping:
            if writer:
                writer.wait()
            raise Stopped(f"Stopped after step {self.step} of {self.steps}; the same command goes on from there.")
