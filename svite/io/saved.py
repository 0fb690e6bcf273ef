"""A model in one file: its tensors, sparse ones packed, and what it takes to build it around them again."""

import reprlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from svite.io.container import read_container, reason, write_container
from svite.io.difference import is_plain
from svite.io.fixed import held
from svite.io.pack import packed, true_shapes, unpacked
from svite.io.spec import Spec
from svite.io.tensors import all_tensors, load_tensors
from svite.sparsity.names import unwrapped
from svite.sparsity.sparsifier import Sparsifier
from svite.vit.opaque import refuse_meta, refuse_opaque
from svite.vit.surgery_alive import Masked, masks_of

PARTS = ("spec", "packed", "note")  # of a document


def save(
    model: nn.Module,
    path: str | Path,
    sparsifier: Masked | None = None,
    *,
    build: tuple[str, Mapping[str, Any]],
    note: Mapping[str, Any] | None = None,
) -> None:
    """Write a dense, masked, shrunk or token-selecting model to a safetensors file, whole or not at all.

    With a sparsifier its masks are kept too, and only the living weights are stored: 1 bit a weight and the living
    ones. A newborn weight of zero stays alive. Without one, zeros are left out where that saves space, and mean
    nothing. Hooks are not saved, but for those of token selectors; nor is the mode, training or evaluation.

    Args:
        model: what `timm.create_model` made, trained, pruned, shrunk or given token selectors since.
        path: of the file, "run.safetensors" say.
        sparsifier: whose masks say which weights live.
        build: the name and the arguments that `timm.create_model` got (a timm model does not record them). What says
            where pretrained weights came from may be among them, and is not stored.
        note: plain values of your own, which `note_of` reads again.

    Raises:
        ValueError: the model is not what `build` makes, or has a module, tensor or value that timm did not put there
            and this file has no word for; the masks are not of this model, or their dead weights are not zero; the note
            is not plain; the model is deployed or quantized, or has no values yet.
        OSError: the file can't be written.
    """
    model, note = unwrapped(model), dict(note or {})
    if not is_plain(note):
        raise ValueError(f"The note {reprlib.repr(note)} can't be saved; only plain values can, as JSON holds them.")
    refuse_meta(model, "svite.save")
    refuse_opaque(model, "svite.save")
    spec = Spec.of(model, *build)
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in all_tensors(model).items()
        if name not in spec.ties
    }
    small, shapes = packed(tensors, {} if sparsifier is None else masks_of(sparsifier, tensors))
    write_container(path, {"spec": asdict(spec), "packed": shapes, "note": note}, small)


def note_of(path: str | Path) -> dict[str, Any]:
    """The plain values that `save` was given for this file.

    Raises as `load` does for a missing or damaged file.
    """
    return _read(path)[0]["note"]


@torch.inference_mode(False)  # whoever only runs the model may load it there, and a sparsifier's tensors can change
def load(path: str | Path) -> tuple[nn.Module, Sparsifier | None]:
    """A model as `save` wrote it, and a sparsifier that holds its masks; None where it was saved without.

    The model is on the CPU, in evaluation mode, with the dtypes that it had, and all parameters train as timm builds
    them. The rule and the schedules of the sparsifier that made the masks are code and not in the file, so the one that
    comes back never changes its topology. It keeps the dead at zero through further training, and its `density`,
    `apply`, `svite.shrink` and `svite.save` are those of any other. Nothing in the file is run, unpickled or fetched,
    and a description of more than its tensors could be is refused before it is built.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that `save` did not write, that a later version wrote or that is damaged; a model that this
            timm can't build, or builds with other tensors.
    """
    document, small = _read(path)
    try:
        spec, packed_shapes = Spec.read(document["spec"]), document["packed"]
        model = spec.bounded_skeleton(true_shapes(small, packed_shapes))
        tensors, masks = unpacked(small, packed_shapes)
        load_tensors(model, tensors, spec.ties)
        return model.eval(), held(model, masks) if masks else None
    except Exception as error:  # what a damaged document says can go wrong anywhere
        raise ValueError(f"{path} can't be built again with timm {timm.__version__}: {reason(error)}.") from None


def _read(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The parts of a document, which are mappings all, and the tensors."""
    document, small = read_container(path)
    for part in PARTS:
        if not isinstance(document.get(part), dict):
            raise ValueError(f"{path} is damaged: its description has no '{part}', or one that is no mapping.")
    return document, small
