"""Models and checkpoints on disk, without pickle: safetensors for models, `weights_only` for checkpoints."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from svite.study import Model, Run, parse
from svite.train.files import write

_MASK = "alive:"


def build(model: Model) -> nn.Module:
    """The timm model that a configuration names; its random weights come from torch's global generator.

    Raises ValueError for a name or an argument that timm does not know.
    """
    import timm

    try:
        return timm.create_model(model.name, **model.arguments)
    except (TypeError, RuntimeError, AssertionError) as error:
        raise ValueError(f"model: timm can't build '{model.name}': {error}.") from None


def save_model(path: str | Path, model: nn.Module, run: Run, masks: Mapping[str, Tensor] | None = None) -> None:
    """A trained model under timm's own names, with all it takes to build it again and the masks of its live weights."""
    from svite.sparsity.mask import pack

    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    tensors |= {f"{_MASK}{name}": pack(alive) for name, alive in (masks or {}).items()}
    write(path, save(tensors, metadata={"run": run.model_dump_json()}))


def load_model(path: str | Path) -> tuple[nn.Module, Run]:
    """A model as `save_model` wrote it, and the run that trained it.

    Raises FileNotFoundError, or ValueError for a damaged file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"The model {path} is missing; `dvc pull` or `dvc repro` makes it.")
    try:
        with safe_open(path, framework="pt") as file:
            run = parse(Run, json.loads(file.metadata()["run"]), str(path))
            tensors = {name: file.get_tensor(name) for name in file.keys() if not name.startswith(_MASK)}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, TypeError) as error:
        raise ValueError(f"The model {path} is damaged ({error}); delete it and train or pull it again.") from None
    model = build(run.model)
    model.load_state_dict(tensors)
    return model, run


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
