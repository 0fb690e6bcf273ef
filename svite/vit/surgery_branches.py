"""The residual branches of a timm Vision Transformer: found, refused by name, removed."""

from collections.abc import Iterator
from dataclasses import dataclass
from types import NoneType

import torch
from timm.layers import Attention, AttentionPoolLatent, Mlp
from timm.models.vision_transformer import Block, ResPostBlock
from torch import nn

from svite.vit.parts import Zero
from svite.vit.surgery import bias_like, bias_of, hidden

# Which child is the branch's layer, what comes before it and what after.
_PATHS = {
    Block: (("attn", "norm1", "ls1"), ("mlp", "norm2", "ls2")),
    ResPostBlock: (("attn", None, "norm1"), ("mlp", None, "norm2")),
    AttentionPoolLatent: (("mlp", "norm", None),),
}
_CUTTABLE = {
    Attention: {"qkv": nn.Linear, "proj": nn.Linear, "norm": nn.Identity, "gate": NoneType},
    Mlp: {"fc1": nn.Linear, "fc2": nn.Linear, "norm": nn.Identity},
}


@dataclass(frozen=True)
class Branch:
    """One layer between two additions to the residual stream, with its place in the block that owns it."""

    name: str
    owner: nn.Module
    child: str
    before: str | None
    after: str | None

    @property
    def layer(self) -> nn.Module | None:
        """The attention or the MLP."""
        return getattr(self.owner, self.child)

    @property
    def gamma(self) -> nn.Parameter | None:
        """What LayerScale multiplies the output by."""
        return getattr(getattr(self.owner, self.after), "gamma", None) if self.after else None

    @torch.no_grad()
    def remove(self) -> None:
        """Put a `Zero` in the place of all of the branch; it keeps the constant that the bias of its output adds."""
        write = hidden(self.layer).write
        constant = bias_of(write)
        if self.after:
            constant = getattr(self.owner, self.after)(constant)
        bias = bias_like(write, constant) if constant.any() else None
        setattr(self.owner, self.child, Zero(bias).train(self.layer.training))
        for name in filter(None, (self.before, self.after)):
            setattr(self.owner, name, nn.Identity().train(getattr(self.owner, name).training))


def cuttable_branches(model: nn.Module) -> list[Branch]:
    """All branches that can be cut: those of the model's `blocks`, and the MLP of an attention pool.

    Raises ValueError naming a block, or a part of one, that can't be cut exactly.
    """
    found = [
        Branch(f"{name}.{child}", owner, child, before, after)
        for name, owner in _owners(model)
        for child, before, after in _PATHS[type(owner)]
    ]
    found = [branch for branch in found if not isinstance(branch.layer, Zero | NoneType)]
    for branch in found:
        _check(branch)
    return found


def _owners(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    nested = {name: module for name, module in model.named_modules() if name.rpartition(".")[2] == "blocks"}
    lists = {"blocks": nested["blocks"]} if "blocks" in nested else nested  # a hybrid's stem has others of its own
    blocks = {f"{name}.{index}": block for name, module in lists.items() for index, block in module.named_children()}
    if not blocks:
        raise ValueError(f"{type(model).__name__} has no `blocks`; only timm Vision Transformers can be shrunk.")
    for name, block in blocks.items():
        if type(block) not in (Block, ResPostBlock):
            raise _refusal(name, block)
    yield from blocks.items()
    yield from ((name, module) for name, module in model.named_modules() if type(module) is AttentionPoolLatent)


def _check(branch: Branch) -> None:
    layer = branch.layer
    if type(layer) not in _CUTTABLE:
        raise _refusal(branch.name, layer)
    for name, wanted in _CUTTABLE[type(layer)].items():
        part = getattr(layer, name, None)
        if type(part) is not wanted:
            raise _refusal(f"{branch.name}.{name}", part)
        if isinstance(part, nn.Linear) and hasattr(part, "gate"):
            raise ValueError(
                f"{branch.name}.{name} has a gate; svite.vit.gates.fold multiplies it into the weights first."
            )


def _refusal(name: str, module: nn.Module | None) -> ValueError:
    return ValueError(
        f"{name} is a {type(module).__module__}.{type(module).__name__}, which can't be cut exactly; what can be is "
        "timm.models.vision_transformer's Block or ResPostBlock of Attention and Mlp: two linear layers each, no scale "
        "norm, no gate, inputs not gathered yet."
    )
