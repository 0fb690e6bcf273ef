"""Gates: learned factors on the input features of a block's linear layers (VTP, arXiv 2104.08500)."""

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from svite.sparsity.cut import Part, Unit, element
from svite.sparsity.names import named_modules
from svite.sparsity.ready import weight_of
from svite.sparsity.sharded import refuse_sharded
from svite.vit.surgery_alive import copied

SITES = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


def gates(model: nn.Module) -> list[Unit]:
    """One unit for each gate that `add_gates` will give a model, each feature a member.

    Raises ValueError for a model without timm's `Block`, one whose layers differ from timm's, and one that has gates.
    """
    sizes = {f"{name}.gate": torch.empty(linear.in_features, device="meta") for name, linear in _sites(model).items()}
    return [Unit.of(name, [Part(name, element())], sizes) for name in sizes]


def add_gates(model: nn.Module) -> None:
    """Give the four linear layers of every block a `gate`, all ones, that multiplies their input.

    The paper's four places: what attention reads, what its projection reads, what the MLP reads, and its inside.

    Raises ValueError for a model without timm's `Block`, one whose layers differ from timm's, one that has gates, and
    one that is sharded.
    """
    sites = _sites(model)
    refuse_sharded(model, "a gate's")
    for linear in sites.values():
        linear.register_parameter("gate", nn.Parameter(torch.ones_like(linear.weight[0])))
        linear.register_forward_pre_hook(_gated)


def _sites(model: nn.Module) -> dict[str, nn.Linear]:
    blocks = {name: module for name, module in named_modules(model).items() if isinstance(module, Block)}
    if not blocks:
        raise ValueError(f"{type(model).__name__} has no timm Block, so there is nothing to gate.")
    linears = {
        f"{name}.{site}": dict(block.named_modules()).get(site) for name, block in blocks.items() for site in SITES
    }
    odd = [name for name, linear in linears.items() if type(linear) is not nn.Linear or hasattr(linear, "gate")]
    if odd:
        raise ValueError(f"{odd[0]} is no plain linear layer, or has a gate already, so it can't get one.")
    for name, linear in linears.items():
        weight_of(name, linear, "weight")
    return linears


def _gated(linear: nn.Linear, inputs: tuple[Tensor]) -> tuple[Tensor]:
    return (inputs[0] * linear.gate,)


def is_gated(model: nn.Module) -> bool:
    """Whether any layer has a gate."""
    return bool(_gates(model))


@torch.no_grad()
def fold(model: nn.Module) -> nn.Module:
    """A copy without gates, each multiplied into the weights that read its features; its logits are the same."""
    folded = copied(model)  # without hooks, the gates' among them
    for linear in _gates(folded):
        linear.weight.mul_(linear.gate)
        del linear.gate
    return folded


def _gates(model: nn.Module) -> list[nn.Linear]:
    return [module for module in model.modules() if isinstance(module, nn.Linear) and hasattr(module, "gate")]
