"""What the outputs of heads and neurons do to the loss, image by image: hooks on the modules that read them.

Over a batch, gradients of weights tell the sum over its images, in which one that gains and one that loses cancel.
"""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import no_type_check

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.hooks import RemovableHandle

from svite.sparsity.cut import Part, Unit
from svite.sparsity.names import named_modules
from svite.sparsity.sharded import averaged, full_tensor

CACHED = 1 << 18  # numbers


class Listener:
    """The hook on a module that reads a unit's members. While it is on, each backward pass adds two sums over images.

    For each member: of its outputs times their gradients, over all positions of an image; and of that, absolute. What
    is not finite is left out, for a gradient scaler skips that step. A copy of the model is listened to no more.
    """

    def __init__(self, unit: str = "", members: int = 0, width: int = 1) -> None:
        self.unit, self.members, self.width, self.on = unit, members, width, False
        self.alive: Mapping[str, Bool[Tensor, "_arena _member"]] = {}
        self.sums: Float[Tensor, "2 member"] | None = None
        self.group: dist.ProcessGroup | None = None

    @no_type_check  # torch.compile can't look through a type checker
    def __call__(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if self.on:
            self._hear(inputs[0])

    @torch.compiler.disable  # the flag is looked at by compiled code, hooks that come later are not
    def _hear(self, outputs: Float[Tensor, "image *position feature"]) -> None:
        if outputs.requires_grad:
            wrapper = DistributedDataParallel._active_ddp_module
            self.group = wrapper.process_group if wrapper else None
            outputs.register_hook(partial(self._add, outputs.detach()))

    @torch.no_grad()
    def _add(self, outputs: Float[Tensor, "image *position feature"], slopes: Tensor) -> None:
        each = _by_image(outputs, slopes).view(len(outputs), -1, self.width).sum(2)
        sums = self._whole(torch.stack([each.sum(0), each.abs().sum(0)])).nan_to_num(0, 0, 0)
        self.sums = sums if self.sums is None else self.sums + sums

    def _whole(self, sums: Float[Tensor, "2 present"]) -> Float[Tensor, "2 member"]:
        """Of all members, where a narrow layer has computed the active only."""
        if sums.shape[1] == self.members:
            return sums
        return sums.new_zeros(2, self.members).masked_scatter_(self.alive[self.unit].expand(2, -1), sums)

    def heard(self, like: Tensor) -> Float[Tensor, "2 member"]:
        """The sums so far; zeros where nothing was heard."""
        return like.new_zeros(2, self.members) if self.sums is None else self.sums.to(like)

    def __reduce__(self) -> tuple:
        return Listener, (self.unit, self.members, self.width)


def _by_image(outputs: Float[Tensor, "image *position feature"], slopes: Tensor) -> Float[Tensor, "image feature"]:
    """Sums of products over positions, in single precision at least; on a CPU in pieces that its cache holds."""
    wide, features = torch.promote_types(slopes.dtype, torch.float32), outputs.shape[-1]
    piece = max(1, CACHED * len(outputs) // outputs.numel()) if outputs.device.type == "cpu" else len(outputs)
    pieces = zip(outputs.split(piece), slopes.split(piece), strict=True)
    return torch.cat([(x.to(wide) * y.to(wide)).reshape(len(x), -1, features).sum(1) for x, y in pieces])


class Outputs:
    """The listeners of a model, and what they heard in this step."""

    def __init__(self) -> None:
        self.listeners: dict[str, Listener] = {}
        self.asked = False  # whether a forward pass of this step was listened to
        self._handles: list[RemovableHandle] = []
        self._changes: dict[str, Tensor] = {}

    def follow(self, model: nn.Module, units: Iterable[Unit], weights: Mapping[str, Tensor]) -> None:
        """Listen to these units of a model from now on, in the place of whoever did."""
        self.remove()
        modules = named_modules(model)
        for unit in units:
            if unit.reader in modules:
                width = weights[unit.parts[-1].name].shape[1] // unit.members
                listener = self.listeners[unit.name] = Listener(unit.name, unit.members, width)
                hooks = modules[unit.reader]._forward_pre_hooks
                for number in [number for number, hook in hooks.items() if isinstance(hook, Listener)]:
                    del hooks[number]
                self._handles.append(modules[unit.reader].register_forward_pre_hook(listener))

    def remove(self) -> None:
        """Take the hooks off."""
        self.forget()
        for handle in self._handles:
            handle.remove()
        self.listeners, self._handles = {}, []

    def listen(self, on: bool, alive: Mapping[str, Bool[Tensor, "_arena _member"]]) -> None:
        """Whether the forward pass that comes belongs to a step whose scores are asked for."""
        self.asked = self.asked or on
        for listener in self.listeners.values():
            listener.on, listener.alive = on, alive

    def forget(self) -> None:
        """Begin a new step."""
        self.asked, self._changes = False, {}
        for listener in self.listeners.values():
            listener.sums, listener.on = None, False

    def go_on_as(self, other: "Outputs") -> None:
        """Take over where in a step another one is, of which this is the copy."""
        for name, listener in self.listeners.items():
            before = other.listeners[name]
            listener.on, listener.group = before.on, before.group
            listener.sums = None if before.sums is None else before.sums.clone()

    def change(self, unit: Unit, units: Mapping[str, Unit], weights: Mapping[str, Tensor]) -> Float[Tensor, "1 member"]:
        """The mean over images of what the loss changes, either way, when a member's output goes, to first order.

        Ranks average, so all have to ask. Raises ValueError for a unit of which no backward pass was heard.
        """
        if not self._changes:
            self._changes = self._settled(units, weights)
        if self.listeners[unit.name].sums is None:
            raise ValueError(
                f"No backward pass through {unit.reader} was seen in this step, which the score of {unit.name} needs; "
                "train the model that the sparsifier was built with, as a whole (and under torch.compile call "
                "`torch.compiler.reset()` first: code that was made for an earlier model of this shape calls no hooks)."
            )
        return self._changes[unit.name]

    def _settled(self, units: Mapping[str, Unit], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        parts = [units[name].parts[-1] for name in self.listeners]
        products = torch.cat([_of_batch(part, weights[part.name]) for part in parts], 1)
        sums = torch.cat([each.heard(products) for each in self.listeners.values()], 1)
        group = next((each.group for each in self.listeners.values() if each.group), None)
        signed, absolute = averaged(sums, weights[parts[0].name], group)
        each = (absolute / _scale(signed, products[0])).split([each.members for each in self.listeners.values()])
        return {name: members[None] for name, members in zip(self.listeners, each, strict=True)}


def _of_batch(part: Part, weight: Tensor) -> Float[Tensor, "1 member"]:
    """The sums over the batch as the weights' own gradients tell them; zeros where there are none."""
    if weight.grad is None:
        return part.cut.gather(torch.zeros(weight.shape, device=weight.device))
    wide = torch.promote_types(weight.dtype, torch.float32)
    return part.cut.gather(full_tensor(weight.detach().to(wide) * weight.grad.to(wide)))


def _scale(heard: Float[Tensor, " member"], told: Float[Tensor, " member"]) -> Float[Tensor, ""]:
    """By what a gradient scaler, or whoever else, has divided gradients since the backward pass: least squares."""
    small = told / told.abs().amax()
    scale = (heard * small).sum() / (told * small).sum()
    return torch.where((scale > 0) & scale.isfinite(), scale, 1.0)
