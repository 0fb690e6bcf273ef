"""What a model costs: parameters, non-zeros, multiply-accumulates, bytes."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from timm.layers import Attention, to_2tuple
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from svite.sparsity.names import named_modules, unwrapped
from svite.vit.mode import evaluating, uncompiled
from svite.vit.opaque import refuse_opaque, refuse_unreadable


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of one image's forward pass: `uses` times `sizes` for each weight, and `attention`.

    A weight is used once at each position that its layer sees; `attention` has the two products of each such layer.
    `others` are all other products: of attention that is not timm's `Attention`, pooling, or a token scorer.
    """

    uses: Mapping[str, int]
    sizes: Mapping[str, int]
    attention: Mapping[str, int]
    others: int = 0

    def total(self, densities: Mapping[str, float] | None = None) -> float:
        """All of them, with weights, and heads of attention layers, kept at `densities` (by name; dense where not)."""
        densities = densities or {}
        linear = sum(self.sizes[name] * uses * densities.get(name, 1.0) for name, uses in self.uses.items())
        return linear + sum(macs * densities.get(name, 1.0) for name, macs in self.attention.items()) + self.others


class _Products(TorchDispatchMode):
    """All multiply-accumulates of matrix products and convolutions that torch carries out inside."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, operator: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        formula = flop_registry.get(operator.overloadpacket)
        if formula is None and operator.overloadpacket is not torch.ops.prim.device:
            with self:  # in inference mode torch leaves a linear layer in one piece
                parts = operator.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        output = operator(*args, **kwargs)
        if formula is not None:
            self.total += formula(*args, **kwargs, out_val=output) // 2
        return output


def macs(model: nn.Module) -> Macs:
    """Counted layer by layer, and checked against all that torch multiplies (DeiT-Small: 4.241 + 0.358 = 4.599 G).

    Runs one blank image through the model to learn how many positions each layer sees.

    Raises ValueError for a model whose layers can't be read (deployed, quantized), one that does not say what images it
    takes, and one that can't take such an image.
    """
    model = unwrapped(model)
    refuse_opaque(model, "svite.cost")
    uses: dict[str, int] = {}
    sizes: dict[str, int] = {}
    attention: dict[str, int] = {}

    def count_layer(name: str, layer: nn.Module, _: tuple, output: Tensor) -> None:
        channels = layer.out_channels if isinstance(layer, nn.Conv2d) else layer.out_features
        uses[name] = uses.get(name, 0) + output.numel() // channels
        sizes[name] = layer.weight.numel()

    def count_attention(name: str, layer: Attention, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        products = 2 * layer.num_heads * layer.head_dim * inputs[0].shape[1] ** 2
        attention[name] = attention.get(name, 0) + products

    with ExitStack() as hooks:
        for name, module in named_modules(model).items():
            if isinstance(module, nn.Linear | nn.Conv2d):
                hooks.enter_context(module.register_forward_hook(partial(count_layer, f"{name}.weight".lstrip("."))))
            if isinstance(module, Attention):
                hooks.enter_context(module.register_forward_hook(partial(count_attention, name)))
        total = _multiplied(model)
    known = Macs(uses, sizes, attention)
    return Macs(uses, sizes, attention, total - int(known.total()))


def _multiplied(model: nn.Module) -> int:
    """Multiply-accumulates of all products when the model sees a blank image."""
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    blank = torch.zeros(1, *input_shape(model), device=like.device, dtype=like.dtype)
    # Torch's fused attention can't be counted on a CPU; without fusion its products are products like others.
    with evaluating(model), uncompiled(), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), _Products() as products:
        try:
            model(blank)
        except (RuntimeError, TypeError, ValueError, AssertionError, NotImplementedError) as error:
            raise ValueError(
                f"{type(model).__name__} can't be counted, for it fails on a blank image of shape "
                f"{tuple(blank.shape[1:])} ({type(error).__name__}: {str(error).strip().splitlines()[0]})."
            ) from error
    return products.total


def input_shape(model: nn.Module) -> tuple[int, int, int]:
    """Channels, height and width of the images that a timm model takes, also behind a stem or as feature extractor.

    Raises ValueError for a model that does not say.
    """
    said = getattr(model, "pretrained_cfg", None) or {}
    default = said.get("input_size") or (None, None, None)
    sizes = (getattr(module, "img_size", None) for module in model.modules())
    height, width = to_2tuple(next(filter(None, sizes), default[1:]))
    stem = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    channels = default[0] if stem is None else stem.in_channels
    if None in (channels, height, width):
        raise ValueError(f"{type(model).__name__} does not say what images it takes, as timm's image models do.")
    return channels, height, width


@dataclass(frozen=True)
class Cost:
    """Parameters, those that are not zero, dense and sparse multiply-accumulates of one image, and bytes as stored."""

    parameters: int
    nonzero: int
    macs: float
    sparse_macs: float
    bytes: int


def cost(model: nn.Module) -> Cost:
    """Count a timm model as it stands; zeros count as absent in `nonzero` and `sparse_macs` only.

    In `sparse_macs` they are those of linear and convolution layers; other products count whole.

    Raises ValueError for a model whose layers can't be read (deployed, quantized, parametrized), one on the meta
    device, one that does not say what images it takes, and one that can't take such an image.
    """
    model = unwrapped(model)
    refuse_unreadable(model, "svite.cost")
    counted = macs(model)
    nonzero = {parameter: int(parameter.detach().count_nonzero()) for parameter in model.parameters()}
    layers = {f"{name}.weight".lstrip("."): layer for name, layer in named_modules(model).items()}
    densities = {name: nonzero[layers[name].weight] / counted.sizes[name] for name in counted.uses}
    return Cost(
        parameters=sum(parameter.numel() for parameter in nonzero),
        nonzero=sum(nonzero.values()),
        macs=counted.total(),
        sparse_macs=counted.total(densities),
        bytes=sum(value.numel() * value.element_size() for value in model.state_dict().values()),
    )
