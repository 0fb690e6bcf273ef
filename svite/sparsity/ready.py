"""Whether weights can be pruned as they stand: parameters of the model, with values, in floating-point numbers."""

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parameter import is_lazy

from svite.sparsity.names import named_modules, named_parameters

_PLAIN = Tensor.__torch_dispatch__  # of tensors whose numbers lie where torch puts them


class Opaque(nn.Module):
    """What is made for kernels, and for nobody else to read: `svite.deploy` puts it in the place of blocks."""


def refuse_unready(model: nn.Module) -> None:
    """ValueError where there is nothing to prune yet, or nothing that could be trained."""
    for name, module in named_modules(model).items():
        if isinstance(module, Opaque):
            raise ValueError(f"{name} is deployed and can't be pruned; prune the model that svite.deploy was given.")
    parameters = named_parameters(model)
    if torch.is_inference_mode_enabled():
        raise ValueError("Nothing can be pruned under torch.inference_mode, whose tensors never train; do it outside.")
    for name, parameter in parameters.items():
        if is_lazy(parameter):
            raise ValueError(f"{name} has no shape yet, for its layer is lazy; run one batch through the model first.")
        if parameter.is_meta:
            raise ValueError(f"{name} is on the meta device and has no values; load or initialise the weights first.")
        if parameter.is_inference():
            raise ValueError(f"{name} was made under torch.inference_mode and never trains; build the model outside.")


def weight_of(layer: str, module: nn.Module, name: str) -> nn.Parameter | None:
    """A parameter of a layer by its name; None where the layer does without it.

    Raises ValueError naming the layer where what has this name is computed from other parameters, as under
    weight_norm, spectral_norm, torch.nn.utils.prune and all of torch's parametrizations; where it is quantized; and
    where it is of another class than torch's own.
    """
    if name not in module._parameters:
        raise ValueError(
            f"{name} of {layer} is no parameter but quantized, or computed from others (normalised, pruned by torch, "
            "parametrized); undo that first, or leave the layer out of `layers`."
        )
    weight = module._parameters[name]
    own = weight is None or isinstance(weight, DTensor) or type(weight).__torch_dispatch__ is _PLAIN
    if not own or (weight is not None and not weight.is_floating_point()):
        kind = weight.dtype if own else f"a {type(weight).__name__}"
        raise ValueError(
            f"{name} of {layer} is {kind} and no plain tensor of floats; prune before you quantize, or leave the layer "
            "out of `layers`."
        )
    return weight
