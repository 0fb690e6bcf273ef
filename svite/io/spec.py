"""What a model is, without its tensors: a timm name with arguments, and edits of what timm builds."""

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, get_origin

import timm
import torch
from torch import nn

from svite.io.bounded import parts_at_most, refuse_larger
from svite.io.difference import Edit, apply, differences, is_plain, refuse_odd_heads
from svite.io.tensors import refuse_misfit, shapes, tied

# Arguments that say where weights come from or lie. In a file they could have timm fetch or unpickle something.
_SOURCES = frozenset(
    {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "device", "dtype"}
)

# What a model may have for each tensor of its file and each edit (layers that were cut away, modules without tensors,
# what timm builds and replaces), and what it may have and count to in any case.
PARTS_EACH, LEAST_PARTS, LEAST_NUMBER = 100, 1000, 1 << 16


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

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> "Spec":
        """What a file says.

        Raises ValueError for other parts than the four, or one of another kind.
        """
        kinds = {part.name: get_origin(part.type) or part.type for part in fields(cls)}
        if {name: type(value) for name, value in values.items()} != kinds:
            raise ValueError(f"its spec should be {', '.join(kinds)}, and is something else")
        return cls(**values)

    def bounded_skeleton(self, found: Mapping[str, torch.Size]) -> nn.Module:
        """The skeleton of a model with tensors of these shapes, in time and room that go with their number.

        Raises ValueError for a description of anything else; a wrong edit raises what its module raises.
        """
        refuse_larger(self.arguments, LEAST_NUMBER + sum(map(torch.Size.numel, found.values())), "an argument")
        with parts_at_most(LEAST_PARTS + PARTS_EACH * (len(found) + len(self.edits) + len(self.ties))):
            model = self.skeleton()
        refuse_misfit(found, {name: shape for name, shape in shapes(model).items() if name not in self.ties})
        refuse_odd_heads(model)
        return model

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
            raise ValueError(f"{key}={reprlib.repr(value)} is no plain value that describes an architecture")
    if not timm.is_model(name):  # it may be a place on the network or the disk
        raise ValueError(f"timm {timm.__version__} has no model of that name")
    try:
        with torch.device("meta"):
            return timm.create_model(name, **arguments)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise ValueError(f"timm {timm.__version__} fails to build it ({error})") from None
