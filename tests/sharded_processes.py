"""One process of tests/test_sparsity_sharded.py: `python sharded_processes.py RANK RANKS FOLDER`."""

import gc
import sys
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import torch
import torch.distributed as dist
from tiny import adamw, batch, logits, made, vit
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

import svite
from svite.methods import taylor
from svite.sparsity.score import output_change
from svite.sparsity.sharded import full_tensor, local_shard
from svite.sparsity.sparsifier import Sparsifier
from svite.vit.branches import add_scales

METHODS = ["svite", "set", "rigl", "gmp", "omp", "snip", "taylor", "nm", "srigl", "block", "l1", "s2vite", "group"]
METHODS += ["acdc", "granet", "isomorphic"]
RESUMED = ["svite", "taylor", "nm", "s2vite"]
STEPS, SAVED = 10, 6  # updates at 4 and 8; what is saved lies between them, in the middle of taylor's averages
COLLECTIVES = {"all_reduce", "all_gather_into_tensor", "reduce_scatter_tensor", "broadcast", "broadcast_", "allreduce_"}
FULL = StateDictOptions(full_state_dict=True)


def sharded(model: nn.Module, apart: Sequence[str] = ("blocks.0",), mesh: DeviceMesh | None = None) -> nn.Module:
    """Some parts gathered each by itself, and evaluated once, which leaves the other parameters gathered.

    In one process the model stays plain.
    """
    if dist.get_world_size() > 1:
        for name in (*apart, ""):
            fully_shard(model.get_submodule(name), mesh=mesh)
    evaluate(model)
    return model


@torch.no_grad()
def evaluate(model: nn.Module) -> None:
    model.eval()(batch(0)[0])
    model.train()


def learn(model: nn.Module, step: int) -> None:
    """A backward pass of this rank's share of the batch."""
    images, labels = (part[dist.get_rank() :: dist.get_world_size()] for part in batch(step))
    cross_entropy(logits(model, images), labels).backward()


def wholes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: full_tensor(tensor.detach()).clone() for name, tensor in tensors.items()}


def saved(model: nn.Module, optimizer: Optimizer, sparsifier: Sparsifier) -> dict:
    state = {
        "model": get_model_state_dict(model, options=FULL),
        "optimizer": get_optimizer_state_dict(model, optimizer, options=FULL),
        "sparsifier": sparsifier.state_dict(),
    }
    return deepcopy(state)  # some of it is the optimizer's own


def resume(model: nn.Module, optimizer: Optimizer, sparsifier: Sparsifier, state: dict) -> None:
    optimizer.zero_grad()  # torch gives an optimizer its first state only where no parameter has a gradient
    state = deepcopy(state)  # torch puts shards in its place
    set_model_state_dict(model, state["model"], options=FULL)
    set_optimizer_state_dict(model, optimizer, state["optimizer"], options=FULL)
    sparsifier.load_state_dict(state["sparsifier"])


def trained(method: str, model: nn.Module, state: dict | None = None, narrow: bool = False) -> dict:
    """Ten steps, or the last four from a saved state."""
    sparsifier, found = made(method, model), {}
    optimizer = adamw(model)
    if narrow:
        svite.narrow(model, sparsifier)
    if state:
        resume(model, optimizer, sparsifier, state)
    for step in range(sparsifier.step, STEPS):
        if step == SAVED:
            found["saved"] = saved(model, optimizer, sparsifier)
        if sparsifier.update_due:
            evaluate(model)
        optimizer.zero_grad()
        learn(model, step)
        sparsifier.before_step(optimizer)
        optimizer.step()
        sparsifier.after_step()
    return found | {
        "masks": wholes(sparsifier.masks),
        "weights": wholes(sparsifier.weights),
        "density": sparsifier.density,
        "itop": sparsifier.itop,
        "summary": sparsifier.summary().fillna({"target": -1}).to_dict("records"),
    }


class Sent(TorchDispatchMode):
    """What goes from rank to rank: the collective, the type and the number of the numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, str, int]] = []

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        if DTensor in types:
            return NotImplemented  # its parts come by later
        name = function._schema.name.rpartition("::")[2]
        if "c10d" in function.namespace and name in COLLECTIVES:
            tensor = next(a for a in arguments if isinstance(a, Tensor))
            self.seen.append((name, str(tensor.dtype), tensor.numel()))
        return function(*arguments, **named or {})


def local_steps(model: nn.Module) -> dict:
    """What a rank holds and sends, step by step."""
    sparsifier = made("svite", model)
    optimizer = adamw(model)
    sent, dead, born, before = [], [], [], {}
    for step in range(STEPS):
        optimizer.zero_grad()
        learn(model, step)
        with Sent() as step_sent:
            sparsifier.before_step(optimizer)
            born += [newborn_state(optimizer, sparsifier, before)] if step in (4, 8) else []
            optimizer.step()
            sparsifier.after_step()
        sent.append(step_sent.seen)
        before = {name: local_shard(mask).clone() for name, mask in sparsifier.masks.items()}
        dead.append(sum(dead_entries(optimizer, weight, before[name]) for name, weight in sparsifier.weights.items()))
    del before
    return {
        "sent": sent,
        "dead": dead,
        "born": born,
        "held": held(torch.bool),
        "bits": held(torch.uint8),
        "shard": sum(local_shard(weight).numel() for weight in sparsifier.weights.values()),
        "all": sum(weight.numel() for weight in sparsifier.weights.values()),
        "rows": {name: len(local_shard(weight)) for name, weight in sparsifier.weights.items()},
    }


def newborn_state(optimizer: Optimizer, sparsifier: Sparsifier, before: dict) -> tuple[int, float, float]:
    """Births on this rank, the sum of their moments, and that of the moments of the living."""
    births, fresh, kept = 0, 0.0, 0.0
    for name, weight in sparsifier.weights.items():
        born = local_shard(sparsifier.masks[name]) & ~before[name]
        moment = local_shard(optimizer.state[weight]["exp_avg"]).abs()
        births, fresh, kept = births + int(born.sum()), fresh + float(moment[born].sum()), kept + float(moment.sum())
    return births, fresh, kept


@torch.no_grad()
def dead_entries(optimizer: Optimizer, weight: Tensor, alive: Tensor) -> int:
    """How many dead entries of a shard, its gradient and its moments are not zero."""
    state = optimizer.state[weight]
    values = [weight, weight.grad, state["exp_avg"], state["exp_avg_sq"]]
    return sum(int(local_shard(value)[~alive].count_nonzero()) for value in values)


def held(dtype: torch.dtype) -> int:
    """The bytes of all tensors of a type in this process."""
    gc.collect()
    tensors = [o for o in gc.get_objects() if type(o) is Tensor and o.dtype == dtype]
    tensors += [local_shard(o) for o in gc.get_objects() if type(o) is DTensor and o.dtype == dtype]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def attached(model: nn.Module) -> dict:
    """Ten clipped steps in a loop that knows no sparsifier, with an EMA in each form that is kept as sparse."""
    sparsifier = made("svite", model)
    optimizer = adamw(model)
    sparsifier.attach(optimizer)
    norms, copies = [], [vit(1), sharded(vit(1))]
    for step in range(STEPS):
        optimizer.zero_grad()
        learn(model, step)
        norms.append(float(full_tensor(nn.utils.clip_grad_norm_(model.parameters(), 0.1))))
        optimizer.step()
    for copy in copies:
        sparsifier.apply(copy)
    return {
        "norms": norms,
        "weights": wholes(sparsifier.weights),
        "masks": wholes(sparsifier.masks),
        "copies": [wholes(dict(copy.named_parameters())) for copy in copies],
    }


def refusals() -> dict[str, str]:
    """What is said to those who ask for what does not work."""
    early = vit()
    before = made("svite", early)
    model = sharded(early)
    learn(model, 0)
    asked = {
        "early": lambda: before.before_step(adamw(model)),
        "gates": lambda: made("vtp", model),
        "scales": lambda: add_scales(model),
        "tokens": lambda: svite.tokens.select(model, at=0),
    }
    return {name: message(ask) for name, ask in asked.items()}


def message(ask) -> str:
    try:
        ask()
    except ValueError as error:
        return str(error)
    return ""


def heard(model: nn.Module) -> dict[str, Tensor]:
    """The scores of heads and neurons after a backward pass, image by image."""
    sparsifier = taylor(model, 0.5, STEPS, cut=svite.structures, batches=1)
    sparsifier.step = next(step for step in range(1, STEPS) if sparsifier.when(step))
    learn(model, 0)
    return {name: sparsifier.scoring.now(output_change, name, 0) for name in sparsifier.units}


def main(rank: int, ranks: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)  # so that no rounding tells a sum of shards from the whole
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting{ranks}", rank=rank, world_size=ranks)
    found = {"local": local_steps(sharded(vit()))}
    found |= {method: trained(method, sharded(vit())) for method in (METHODS if ranks < 4 else [])}
    of_two = found if ranks == 2 else torch.load(folder / "0 of 2.pt", weights_only=True)
    found["resumed"] = {method: trained(method, sharded(vit()), of_two[method]["saved"]) for method in RESUMED}
    if ranks < 4:
        found["narrow"] = trained("s2vite", sharded(vit(), ["blocks.0.attn", "blocks.0.mlp.fc1"]), narrow=True)
        found["at once"] = trained("s2vite", sharded(vit(), []))
        found["attached"] = attached(sharded(vit()))
        found["heard"] = heard(sharded(vit()))
        found["heard apart"] = heard(sharded(vit(), ["blocks.0.attn", "blocks.0.mlp.fc2"]))
    if ranks == 4:
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replica", "shard"))
        found["hybrid"] = trained("taylor", sharded(vit(), mesh=mesh))
    if ranks == 2:
        found["refused"] = refusals()
    torch.save(found, folder / f"{rank} of {ranks}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
