"""The models of runs, as safetensors."""

from pathlib import Path
from typing import Any

from torch import nn

from svite.io.saved import load, note_of, save
from svite.params.recipe import Model, near, parse
from svite.params.run import DENSE, Run
from svite.vit.surgery_alive import Masked


def build(model: Model, pretrained: bool = False) -> nn.Module:
    """The timm model that a configuration names; its random weights come from torch's global generator.

    Raises ValueError for a name or an argument that timm does not know, and for what is no transformer of patches.
    """
    import timm

    if model.name.partition(":")[0] == model.name and not timm.is_model(model.name):
        said = near(model.name, timm.list_models(), "models")
        raise ValueError(f"model.name: timm has no model '{model.name}'; {said}.")
    try:
        made = timm.create_model(model.name, pretrained=pretrained, **model.arguments)
    except Exception as error:  # whatever its code comes to with arguments that it never checks
        said = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        raise ValueError(f"model: timm can't build '{model.name}' of these arguments: {said}.") from None
    if not hasattr(made, "patch_embed"):
        raise ValueError(
            f"model.name: '{model.name}' is no Vision Transformer (it has no patch_embed); take one of timm's, "
            "deit_small_patch16_224 say."
        )
    return made


def save_model(path: str | Path, model: nn.Module, run: Run, masked: Masked | None = None) -> None:
    """A trained model, whole or shrunk, with the run that trained it and the masks of its live weights."""
    save(model, path, masked, build=(run.model.name, run.model.arguments), note={"run": run.model_dump(mode="json")})


def load_model(path: str | Path) -> tuple[nn.Module, Run]:
    """A model as `save_model` wrote it, and the run that trained it.

    Raises FileNotFoundError, or ValueError for a damaged file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"The model {path} is missing; `dvc repro` makes it.")
    try:
        run = note_of(path).get("run")
        if not isinstance(run, dict):
            raise ValueError("it does not say which run trained it")
        return load(path)[0], parse(Run, _renamed(run), str(path))
    except ValueError as error:
        raise ValueError(f"The model {path} is damaged ({error}); delete it and train it again.") from None


def _renamed(run: dict[str, Any]) -> dict[str, Any]:
    """A run in today's words: `half` was a dense run on half the epochs, `nm8` was `nm` of every eight inputs."""
    options = run.get("options", {})
    if run.get("method") == "half":
        return run | {"method": DENSE}
    if run.get("method") == "nm8" and isinstance(options, dict):
        return run | {"method": "nm", "options": options | {"m": 8}}
    return run
