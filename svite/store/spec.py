"""What a model is, without its tensors: a timm name with arguments, and edits of what timm builds."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import nn

from svite.store.difference import Edit, apply, differences, is_plain
from svite.store.tensors import refuse_misfit, shapes, tied

# Arguments that say where weights come from or lie. In a file they could have timm fetch or unpickle something.
_SOURCES = frozenset(
    {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "device", "dtype"}
)


@dataclass(frozen=True)
class Spec:
    """Plain values only; `ties` names each tensor that is another one."""

    name: str
    arguments: dict[str, Any]
    edits: list[Edit]
    ties: dict[str, str]

    @classmethod
    def of(cls, model: nn.Module, name: str, arguments: Mapping[str, Any]) -> "Spec":
        """Compare a model with what timm builds.

        Raises ValueError naming an argument that JSON can't hold, a model that timm can't build, or the first module,
        tensor or value of this model that no edit accounts for.
        """
        arguments = {key: value for key, value in arguments.items() if key not in _SOURCES}
        try:
            fresh = built(name, arguments)
            spec = cls(name, arguments, list(differences(fresh, model)), tied(model))
            refuse_misfit(shapes(model), shapes(spec.skeleton()))
        except ValueError as error:
            raise ValueError(f"This model can't be saved as timm's '{name}' with {arguments}: {error}.") from None
        return spec

    def skeleton(self) -> nn.Module:
        """The model with all of its tensors on the meta device: shapes, and no values.

        Raises ValueError for a model that timm can't build; a wrong edit raises what its module raises.
        """
        model = built(self.name, self.arguments)
        with torch.device("meta"):
            for edit in self.edits:
                apply(edit, model)
        return model


def built(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """What timm builds, on the meta device: no memory, no random numbers, nothing fetched.

    Raises ValueError for a name or an argument that timm does not know, for arguments that JSON can't hold, and for
    those that fetch weights.
    """
    for key, value in arguments.items():
        if key in _SOURCES or not is_plain(value):
            raise ValueError(f"{key}={value!r} is no plain value that describes an architecture")
    if not timm.is_model(name):  # it may be a place on the network or the disk
        raise ValueError(f"timm {timm.__version__} has no model of that name")
    try:
        with torch.device("meta"):
            return timm.create_model(name, **arguments)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise ValueError(f"timm {timm.__version__} fails to build it ({error})") from None
