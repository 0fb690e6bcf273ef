"""One of two processes of tests/test_sparsity_distributed.py: `python two_processes.py RANK FOLDER`."""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from tiny import adamw, backward, batch, logits, made, vit
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import svite
from svite.methods import taylor
from svite.sparsity.score import output_change

STEPS = 10


def loss_of(model: nn.Module, step: int, rank: int) -> torch.Tensor:
    """This rank's half of the step's batch."""
    images, labels = batch(step)
    return cross_entropy(logits(model, images[rank::2]), labels[rank::2])


class Counting:
    """How often a collective is called by Python, DDP's own reducer being C++."""

    def __init__(self) -> None:
        self.calls = 0
        for name in ("broadcast", "all_reduce", "all_gather", "broadcast_object_list", "all_gather_object"):
            setattr(dist, name, self._counted(getattr(dist, name)))

    def _counted(self, function):
        def counted(*arguments, **named):
            self.calls += 1
            return function(*arguments, **named)

        return counted


def explicit(method: str, rank: int, counting: Counting) -> dict:
    model = DistributedDataParallel(torch.compile(vit(), backend="eager") if method == "svite" else vit())
    optimizer, before = adamw(model), counting.calls
    torch.manual_seed(rank)  # a topology must not depend on it
    sparsifier = made(method, model)
    start = {name: mask.clone() for name, mask in sparsifier.masks.items()}
    found = {}
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = loss_of(model, step, rank)
        loss.backward()
        sparsifier.before_step(optimizer)
        optimizer.step()
        sparsifier.after_step()
        if step == 4:
            found["first_update"] = {name: mask.clone() for name, mask in sparsifier.masks.items()}
    return found | {
        "alive": {name: mask.clone() for name, mask in sparsifier.masks.items()},
        "changed": any(not torch.equal(start[name], mask) for name, mask in sparsifier.masks.items()),
        "weights": {name: weight.detach().clone() for name, weight in sparsifier.weights.items()},
        "born": [update.born for update in sparsifier.updates],
        "loss": float(loss.detach()),
        "collectives": counting.calls - before,
    }


def attached(rank: int) -> dict:
    model = DistributedDataParallel(vit())
    optimizer = adamw(model)
    sparsifier = made("svite", model)
    sparsifier.attach(optimizer)
    dense, norms = [], []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss_of(model, step, rank).backward()
        if any(weight.grad[~sparsifier.masks[name]].any() for name, weight in sparsifier.weights.items()):
            dense.append(step)
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), 0.1)))
        optimizer.step()
    return {
        "dead gradients at steps": dense,
        "norms": norms,
        "steps": sparsifier.step,
        "born": sum(update.born for update in sparsifier.updates),
        "weights": {name: weight.detach().clone() for name, weight in sparsifier.weights.items()},
    }


def alone() -> dict:
    """The same first steps in one process."""
    model = vit()
    optimizer, sparsifier = adamw(model), made("svite", model)
    for step in range(5):
        optimizer.zero_grad()
        backward(model, step)
        sparsifier.before_step(optimizer)
        optimizer.step()
        sparsifier.after_step()
    return dict(sparsifier.masks)


def heard(rank: int) -> dict:
    """The scores of heads and neurons, image by image: under DDP, of this rank's images alone, and of all in one."""
    found = {"alone": scores(vit(), lambda model: loss_of(model, 0, rank).backward())}
    found["all"] = scores(vit(), lambda model: backward(model, 0))
    found["of two"] = scores(vit(), lambda model: [backward(model, step) for step in (1, 2)])
    found["ddp"] = scores(vit(), lambda model: learn(DistributedDataParallel(model), rank))
    found["compiled"] = scores(vit(), lambda model: learn(compiled(model), rank))
    found["accumulated"] = scores(vit(), lambda model: accumulate(DistributedDataParallel(model), rank))
    return found


def compiled(model: nn.Module) -> nn.Module:
    torch.compiler.reset()  # what was compiled for an earlier model calls no hooks
    return DistributedDataParallel(torch.compile(model, backend="eager"))


def learn(model: nn.Module, rank: int) -> None:
    loss_of(model, 0, rank).backward()


def accumulate(model: nn.Module, rank: int) -> None:
    with model.no_sync():
        loss_of(model, 1, rank).backward()
    loss_of(model, 2, rank).backward()


def scores(model: nn.Module, train: Callable[[nn.Module], object]) -> dict:
    sparsifier = taylor(model, 0.5, STEPS, cut=svite.structures, batches=1)
    sparsifier.step = next(step for step in range(1, STEPS) if sparsifier.when(step))
    train(model)
    return {name: sparsifier.scoring.now(output_change, name, 0) for name in sparsifier.units}


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    counting = Counting()
    found = {method: explicit(method, rank, counting) for method in ("svite", "set", "taylor", "s2vite")}
    found |= {"attached": attached(rank), "alone": {name: mask.clone() for name, mask in alone().items()}}
    found["heard"] = heard(rank)
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
