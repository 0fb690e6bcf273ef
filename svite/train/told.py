"""What a run does not pass over in silence: settings that it never looks at, and what was asked for and can't be."""

from collections.abc import Iterator

from svite.params.options import shares
from svite.params.recipe import Strict
from svite.params.run import DENSE, Run, Training
from svite.sparsity.sparsifier import Sparsifier
from svite.train.builders import takes

FOR_MEMORY = ("rotate", "zoom", "shift")


def unused(training: Training) -> list[str]:
    """Each setting that somebody changed from its default and the run never looks at, with the reason."""
    return [*_of_data(training), *_of_method(training), *_of_parts(training)]


def _changed(settings: Strict, name: str) -> bool:
    return getattr(settings, name) != type(settings).model_fields[name].default


def _of_data(training: Training) -> Iterator[str]:
    recipe = training.recipe
    if not isinstance(training.data, str):
        yield from (f"recipe.{name} (for images in memory)" for name in FOR_MEMORY if _changed(recipe, name))
    elif _changed(recipe, "views"):
        yield "recipe.views (for images read from files; those in memory are turned, zoomed and shifted)"


def _of_method(training: Training) -> Iterator[str]:
    if training.method == DENSE and training.density != 1.0:
        yield "density (dense keeps every weight)"
    elif training.density != 1.0 and not (own := shares(training.method)):
        yield f"density ({training.method} takes none)"
    elif training.density != 1.0 and {*own} <= training.options.keys():
        yield f"density (options say {' and '.join(own)})"
    if _changed(training.recipe, "interval") and not takes(training.method, "interval"):
        yield f"recipe.interval ({training.method} changes no topology in training)"
    elif _changed(training.recipe, "interval") and "interval" in training.options:
        yield "recipe.interval (options say it)"
    if training.start and training.model.pretrained:
        yield "model.pretrained (the run starts from `start`)"


def _of_parts(training: Training) -> Iterator[str]:
    taught, mixing = training.recipe.distillation, training.recipe.mixing
    if taught and taught.kind == "hard" and _changed(taught, "temperature"):
        yield "recipe.distillation.temperature (for a soft teacher)"
    if mixing and _changed(mixing, "switch") and not (mixing.mixup and mixing.cutmix):
        yield "recipe.mixing.switch (one of mixup and cutmix is 0)"


def unchanging(run: Run, sparsifier: Sparsifier | None, steps: int) -> str:
    """One sentence where a run is too short for its topology to change; nothing where it does."""
    if not takes(run.method, "interval") or any(map(sparsifier.when, range(1, steps))):
        return ""
    where, interval = ("options", run.options) if "interval" in run.options else ("recipe", dict(run.recipe))
    return f"The topology never changes: the run has {steps} steps, and {where}.interval is {interval['interval']}."
