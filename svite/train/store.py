"""Models and checkpoints of runs, without pickle: safetensors for models, `weights_only` for checkpoints."""

import io
from pathlib import Path
from typing import Any

import torch
from torch import nn

from svite.recipe import Model, parse
from svite.store.files import write
from svite.store.saved import load, note_of, save
from svite.study import Run
from svite.vit.surgery_alive import Masked


def build(model: Model) -> nn.Module:
    """The timm model that a configuration names; its random weights come from torch's global generator.

    Raises ValueError for a name or an argument that timm does not know.
    """
    import timm

    try:
        return timm.create_model(model.name, **model.arguments)
    except (TypeError, RuntimeError, AssertionError) as error:
        raise ValueError(f"model: timm can't build '{model.name}': {error}.") from None


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
        return load(path)[0], parse(Run, note_of(path).get("run", {}), str(path))
    except ValueError as error:
        raise ValueError(f"The model {path} is damaged ({error}); delete it and train it again.") from None


def save_checkpoint(path: str | Path, state: dict[str, Any]) -> None:
    """Atomic: the file is the old one or the new one, never half of either."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write(path, buffer.getvalue())


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """What `save_checkpoint` wrote; nothing in the file is executed.

    Raises ValueError for a truncated or foreign file.
    """
    try:
        return torch.load(path, weights_only=True)
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"The checkpoint {path} is damaged ({reason}); delete it to train from the start.") from None
