"""Parameters that FSDP2 has sharded: this rank's shard in every step, the whole where a topology is chosen.

Parameters, gradients, optimizer state and masks are then DTensors. Scores are elementwise, so they shard alike, and
are gathered one weight at a time. On plain tensors every function here is the identity.
"""

from collections.abc import Iterable

import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.distributed.fsdp import FlatParameter, FSDPModule
from torch.distributed.tensor import DTensor, Shard, distribute_tensor


def is_sharded(tensors: Iterable[Tensor]) -> bool:
    """Whether any of the tensors lies in shards."""
    return any(isinstance(tensor, DTensor) for tensor in tensors)


def full_tensor(tensor: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """All of a tensor, the same on every rank; all ranks have to ask, in the same order."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local_shard(tensor: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """This rank's shard itself, not a copy; it may be empty."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shard_like(tensor: Shaped[Tensor, "..."], parameter: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """What every rank has whole, in shards as `parameter` is; nothing is sent."""
    if not isinstance(parameter, DTensor):
        return tensor
    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)


def dealt(members: Shaped[Tensor, "arena member"], parameter: Shaped[Tensor, "..."]) -> Shaped[Tensor, "arena member"]:
    """What every rank has whole, in equal shares along its longer side, over the ranks that `parameter` is sharded on.

    Members need not end where shards of their weight do: a block spans rows.
    """
    if not isinstance(parameter, DTensor):
        return members
    longer = Shard(int(members.shape[1] > members.shape[0]))
    mesh = parameter.device_mesh
    return distribute_tensor(members, mesh, [longer] * mesh.ndim, src_data_rank=None)


def averaged(
    values: Shaped[Tensor, "..."], parameter: Shaped[Tensor, "..."], group: dist.ProcessGroup | None
) -> Shaped[Tensor, "..."]:
    """The mean over the ranks that train `parameter`: those that its shards lie on, else those of DDP's group."""
    mesh = parameter.device_mesh if isinstance(parameter, DTensor) else None
    groups = [mesh.get_group(axis) for axis in range(mesh.ndim)] if mesh else [group] if group else []
    for each in groups:
        dist.all_reduce(values, group=each)
        values /= dist.get_world_size(each)
    return values


def at_rest(model: nn.Module) -> None:
    """Give up gathered parameters: after a forward pass without a backward pass FSDP2 keeps those of its root."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def refuse_flattened(model: nn.Module) -> None:
    """ValueError for a model whose weights FSDP1 or DeepSpeed has flattened: they have no shape for a mask any more."""
    parameters = list(model.parameters())
    if any(isinstance(p, FlatParameter) or getattr(p, "_fsdp_flattened", False) for p in parameters):
        raise ValueError(
            "FullyShardedDataParallel (FSDP1) has flattened the weights, which no mask follows; use `fully_shard` "
            "(FSDP2) before the sparsifier is built."
        )
    if type(model).__module__.partition(".")[0] == "deepspeed" or any(hasattr(p, "ds_id") for p in parameters):
        raise ValueError("DeepSpeed has the weights, which no mask follows there; use DDP or FSDP2 (`fully_shard`).")


def refuse_sharded(model: nn.Module, what: str) -> None:
    """ValueError where FSDP2 has sharded the model, so that it would not synchronise the parameters `what` brings."""
    if is_sharded(model.parameters()):
        raise ValueError(
            f"FSDP2 does not know of parameters that come after `fully_shard`, as {what} would; add them before it, or "
            "train with DDP."
        )
