"""A model whose parameters lie in shards, and its state as one process would have it."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from svite.sparsity.sharded import full_tensor, shard_like


def shard(model: nn.Module, device: torch.device, processes: int) -> None:
    """Shard parameters over all processes, in place, a block at a time (FSDP2)."""
    mesh = init_device_mesh(device.type, (processes,))
    for block in getattr(model, "blocks", ()):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def gathered(state: Any, here: bool = True) -> Any:
    """A nested state with every sharded tensor whole and on the CPU; all processes have to ask, in the same order.

    A process that does not want it `here` holds one tensor at a time, and has nothing in their place.
    """
    if isinstance(state, DTensor):
        whole = full_tensor(state)
        return whole.cpu() if here else None
    if isinstance(state, dict):
        return {key: gathered(value, here) for key, value in state.items()}
    return [gathered(value, here) for value in state] if isinstance(state, list) else state


def load_weights(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Load whole tensors into a model, sharded or not."""
    own = model.state_dict()
    model.load_state_dict(
        {name: shard_like(value, own[name]) if name in own else value for name, value in state.items()}
    )


def load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load an optimizer's whole state where its parameters are sharded or not."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    alike = {
        index: {
            name: shard_like(value, parameters[index])
            if isinstance(value, Tensor) and value.shape == parameters[index].shape
            else value
            for name, value in each.items()
        }
        for index, each in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": alike})
