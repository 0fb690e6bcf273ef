"""Cutting the layers of a branch in place: heads of an attention, neurons of an MLP."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from timm.layers import Attention, Mlp
from torch import Tensor, nn


@dataclass(frozen=True)
class Hidden:
    """The features between the two linear layers of a branch; `size` of them make a member, a head or a neuron.

    They are made by the last rows of `read` (the values of qkv, or all of fc1), and `write` sums over them.
    """

    read: nn.Linear
    activation: nn.Module
    write: nn.Linear
    size: int

    @property
    def width(self) -> int:
        """How many features there are."""
        return self.write.in_features


def hidden(layer: Attention | Mlp) -> Hidden:
    """The features that a cut removes."""
    if isinstance(layer, Attention):
        return Hidden(layer.qkv, nn.Identity(), layer.proj, layer.head_dim)
    return Hidden(layer.fc1, layer.act, layer.fc2, 1)


def keep_members(layer: Attention | Mlp, members: Bool[Tensor, " member"]) -> None:
    """Cut all heads or neurons but `members` out of a layer; what they added to its output is lost."""
    inside = hidden(layer)
    features = members.repeat_interleave(inside.size)
    keep_rows(inside.read, features.repeat(inside.read.out_features // inside.width))
    keep_columns(inside.write, features)
    if isinstance(layer, Attention):
        layer.num_heads, layer.attn_dim = int(members.sum()), int(features.sum())


@torch.no_grad()
def fold_constant(layer: Attention | Mlp, constant: Bool[Tensor, " member"]) -> None:
    """Add what members of constant output contribute to the bias of `write`.

    A head without values outputs its values' bias, for attention probabilities sum to one; a neuron without inputs
    outputs the activation of its bias.
    """
    inside = hidden(layer)
    features = constant.repeat_interleave(inside.size)
    bias = bias_of(inside.read)[-inside.width :][features]
    contribution = inside.write.weight[:, features] @ inside.activation(bias)
    if contribution.any():
        inside.write.bias = bias_like(inside.write, bias_of(inside.write) + contribution)


def bias_of(linear: nn.Linear) -> Float[Tensor, " out"]:
    """The bias, zeros where there is none."""
    return linear.weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias.detach()


def keep_rows(linear: nn.Linear, rows: Bool[Tensor, " out"]) -> None:
    """Cut all outputs but `rows`."""
    linear.weight = parameter_like(linear.weight[rows], like=linear.weight)
    if linear.bias is not None:
        linear.bias = parameter_like(linear.bias[rows], like=linear.bias)
    linear.out_features = len(linear.weight)


def keep_columns(linear: nn.Linear, columns: Bool[Tensor, " in"]) -> None:
    """Cut all inputs but `columns`."""
    linear.weight = parameter_like(linear.weight[:, columns], like=linear.weight)
    linear.in_features = linear.weight.shape[1]


def bias_like(linear: nn.Linear, value: Float[Tensor, " out"]) -> nn.Parameter:
    """A parameter that is trained where the layer's bias is, or its weight if it has none."""
    return parameter_like(value, like=linear.weight if linear.bias is None else linear.bias)


def parameter_like(value: Tensor, like: nn.Parameter) -> nn.Parameter:
    """A parameter that is trained where `like` is."""
    return nn.Parameter(value.detach().contiguous(), requires_grad=like.requires_grad)
