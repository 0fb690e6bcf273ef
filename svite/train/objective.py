"""What training minimises: cross-entropy with softened labels, of mixed images, and against what a teacher says."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, Num
from timm.data import Mixup, resolve_data_config
from timm.task.distillation import DistillationTeacher
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div

from svite.data.source import Moments
from svite.data.views import random_numbers_kept
from svite.io.saved import load
from svite.params.recipe import Distillation, Mixing, Recipe, near

Pixels = Float[Tensor, "image channel height width"]
Labels = Num[Tensor, "image *class"]
COLOURS = 3  # channels that timm knows moments of
Output = Float[Tensor, "image class"] | tuple[Float[Tensor, "image class"], Float[Tensor, "image class"]]


def mixer(mixing: Mixing | None, smoothing: float, classes: int) -> Mixup | None:
    """timm's mixup and cutmix, which soften labels too."""
    if mixing is None:
        return None
    odds = {"prob": mixing.probability, "switch_prob": mixing.switch}
    return Mixup(mixing.mixup, mixing.cutmix, label_smoothing=smoothing, num_classes=classes, **odds)


def teacher_for(student: nn.Module, distillation: Distillation) -> nn.Module:
    """The teacher's model: from a file of `svite.save`, or timm's pretrained one of that name.

    Raises ValueError for a teacher that timm does not know, that tells other classes apart than the student, or can't
    see its images.
    """
    if Path(distillation.teacher).is_file():
        teacher = load(distillation.teacher)[0]
    else:
        import timm

        try:
            teacher = timm.create_model(
                distillation.teacher, pretrained=True, num_classes=student.num_classes, in_chans=student.in_chans
            )
        except Exception as error:  # whatever a download or timm's own code comes to
            said = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
            like = near(distillation.teacher, timm.list_models(pretrained=True), "models")
            raise ValueError(f"recipe.distillation.teacher: no file, and {said}; {like}.") from None
    if teacher.num_classes != student.num_classes:
        raise ValueError(
            f"recipe.distillation.teacher: '{distillation.teacher}' knows {teacher.num_classes} classes, "
            f"the model {student.num_classes}."
        )
    refuse_blind(teacher, distillation.teacher, (student.in_chans, *student.patch_embed.img_size))
    return teacher


@torch.no_grad()
def refuse_blind(teacher: nn.Module, name: str, shape: tuple[int, int, int]) -> None:
    """Raise ValueError for a teacher that can't see images of (channels, height, width)."""
    try:
        teacher.eval()(torch.zeros(1, *shape))
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        seen = " x ".join(map(str, shape))
        raise ValueError(f"recipe.distillation.teacher: '{name}' can't see images of {seen} ({reason}).") from None


def _of_timm(student: nn.Module) -> Moments:
    config = resolve_data_config({}, model=student)
    mean, deviation = (torch.tensor(config[name]).view(1, -1, 1, 1) for name in ("mean", "std"))
    return mean, deviation


class Teaching(nn.Module):
    """What a teacher adds: its best guess as a label (hard), or its guesses, softened by a temperature (soft).

    Training data-efficient image transformers and distillation through attention (arXiv 2012.12877, section 4).
    """

    def __init__(self, student: nn.Module, distillation: Distillation, moments: Moments | None) -> None:
        super().__init__()
        self.kind, self.share = distillation.kind, distillation.share
        self.temperature, from_file = distillation.temperature, Path(distillation.teacher).is_file()
        self.teacher = DistillationTeacher(teacher_for(student, distillation)).requires_grad_(False)
        for name, moment in zip(("mean", "std"), moments or _of_timm(student), strict=True):
            # In memory, images are normalised by moments of their own: a file's teacher learned from the same ones.
            known = moment.shape[1] == student.in_chans == COLOURS and not (moments and from_file)
            self.register_buffer(name, moment if known else None)
        if hasattr(student, "set_distilled_training"):  # its second output is for the teacher
            student.set_distilled_training(True)

    def forward(self, images: Pixels, output: Float[Tensor, "image class"]) -> Float[Tensor, ""]:
        """The loss against the teacher."""
        with torch.no_grad():
            guess = self.teacher(self.teacher.normalize_input(images, self.mean, self.std))
        if self.kind == "hard":
            return cross_entropy(output, guess.argmax(1))
        softened = (output / self.temperature).log_softmax(1), (guess / self.temperature).log_softmax(1)
        return kl_div(*softened, reduction="batchmean", log_target=True) * self.temperature**2


class Objective:
    """The loss of a batch. `moments` are what images are normalised by, if not as timm says of the model."""

    def __init__(self, recipe: Recipe, model: nn.Module, device: torch.device, moments: Moments | None = None) -> None:
        self.smoothing = 0.0 if recipe.mixing else recipe.smoothing
        self.mixer = mixer(recipe.mixing, recipe.smoothing, model.num_classes)
        self.teaching = Teaching(model, recipe.distillation, moments).to(device) if recipe.distillation else None

    def mixed(self, images: Pixels, labels: Int[Tensor, " image"], seed: int) -> tuple[Pixels, Labels]:
        """Images and labels mixed in pairs, a function of the seed; as they are where nothing is mixed."""
        if self.mixer is None:
            return images, labels
        with random_numbers_kept():
            np.random.seed(seed % 2**32)  # noqa: NPY002 (timm's mixup draws from the global state only)
            return self.mixer(images, labels)

    def __call__(self, output: Output, images: Pixels, labels: Labels) -> Float[Tensor, ""]:
        """The mean loss."""
        student, taught = output if isinstance(output, tuple) else (output, output)
        loss = cross_entropy(student, labels, label_smoothing=self.smoothing)
        if self.teaching is None:
            return loss
        return torch.lerp(loss, self.teaching(images, taught), self.teaching.share)
