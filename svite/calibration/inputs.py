"""What the layers of a model read when images pass, and which layers can be judged by it."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import unfold

from svite.sparsity.arguments import check
from svite.sparsity.cut import Cut, Unit, n_of_m
from svite.sparsity.layers import divided, units
from svite.sparsity.names import named_modules
from svite.sparsity.pool import Pool, uniform
from svite.sparsity.ready import refuse_unready
from svite.sparsity.sharded import is_sharded
from svite.vit.mode import device_of, evaluating, uncompiled


def arranged(
    model: nn.Module, images: Tensor, density: float, m: int | None, cut: Cut, layers: Sequence[str] | None
) -> list[Pool]:
    """One pool a layer, in the model's order, cut into groups of `m` inputs if asked; what does not divide stays dense.

    Raises ValueError for arguments that make no sense, and for a layer that can't be judged by its inputs.
    """
    check(density=density, layers=layers, **({} if m is None else {"m": m}))
    refuse_unready(model)
    if is_sharded(model.parameters()):
        raise ValueError("A sharded model can't be pruned by its inputs; prune it before `fully_shard`.")
    if not isinstance(images, Tensor) or images.dim() != 4 or not len(images):
        raise ValueError("`images` must be a batch of shape (image, channel, height, width), of one image or more.")
    if m and abs(density * m - round(density * m)) > 1e-9:
        raise ValueError(f"A density of {density} is not a whole number of every {m} inputs; 2 of 4 would be 0.5.")
    cut = n_of_m(m) if m else cut
    sparse, dense = divided(model, cut) if layers is None else (units(model, layers, cut), [])
    for unit in sparse:
        layer_of(model, unit)
    return uniform(sparse, density) + [Pool((unit,), 1.0) for unit in dense]


def layer_of(model: nn.Module, unit: Unit) -> nn.Linear | nn.Conv2d:
    """The layer that a unit's weight belongs to.

    Raises ValueError for another kind than a linear or a plain two-dimensional convolution layer.
    """
    layer = named_modules(model).get(unit.name.removesuffix(".weight"))
    plain = isinstance(layer, nn.Conv2d) and layer.groups == 1 and not isinstance(layer.padding, str)
    if not isinstance(layer, nn.Linear) and not (plain and layer.padding_mode == "zeros"):
        raise ValueError(
            f"{unit.name} is neither of a linear nor of a plain convolution layer, so its inputs can't be told apart; "
            "leave it out of `layers`."
        )
    return layer


@torch.no_grad()
def inputs(
    model: nn.Module, unit: Unit, images: Float[Tensor, "image channel height width"], batch: int = 64
) -> Iterator[Float[Tensor, "position input"]]:
    """What a layer reads at every position of the images, at evaluation, one batch after the other.

    Raises ValueError for a layer that no image reaches.
    """
    layer, read = layer_of(model, unit), []
    handle = layer.register_forward_pre_hook(lambda _, given: read.append(given[0]))
    try:
        for part in images.split(batch):
            with evaluating(model), uncompiled():
                model(part.to(device_of(model)))
            if not read:
                raise ValueError(f"{unit.name} reads nothing when images pass; leave it out of `layers`.")
            while read:
                yield _positions(layer, read.pop())
    finally:
        handle.remove()


def _positions(layer: nn.Linear | nn.Conv2d, given: Float[Tensor, "..."]) -> Float[Tensor, "position input"]:
    given = given.float() if given.dtype.itemsize < 4 else given
    if isinstance(layer, nn.Linear):
        return given.flatten(0, -2)
    columns = unfold(given, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    return columns.transpose(1, 2).flatten(0, 1)
