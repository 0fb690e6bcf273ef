"""A shrunk model, with and without token selection, against the dense one: images a second, and against its MACs."""

from collections.abc import Callable, Sequence
from copy import deepcopy

import torch
from torch import nn

from benchmarks.claim import Claim
from benchmarks.interleave import timed
from svite import deploy, tokens
from svite.methods import omp
from svite.sparsity.pool import uniform
from svite.vit.cost import input_shape, macs
from svite.vit.shrink import shrink
from svite.vit.structure import structures

HALF = "half of the heads and neurons"
KEEP = 0.7
FLOORS = {"half": {1: 1.75, 8: 2.0}, "selected": {1: 2.5, 8: 3.0}}
SAVED = 0.8


def halved(model: nn.Module) -> nn.Module:
    """Half of the heads and half of the neurons of each block, chosen by magnitude, the rest really gone."""
    return shrink(model, omp(model, 0.5, cut=structures, pool=uniform)).eval()


def chosen(at: Sequence[int]) -> str:
    """How a claim calls the selection of tokens; papers count layers from 1, code counts blocks from 0."""
    return f"tokens kept at {KEEP} from layers {', '.join(str(block + 1) for block in at)}"


def contestants(build: Callable[[], nn.Module], at: Sequence[int]) -> dict[str, nn.Module]:
    """The dense model and the smaller ones, in evaluation mode."""
    dense = build().eval()
    small = halved(deepcopy(dense))
    return {"dense": dense, "half": small, "selected": tokens.select(deepcopy(small), KEEP, at).eval()}


def measure(name: str, build: Callable[[], nn.Module], rounds: int, at: Sequence[int]) -> list[Claim]:
    """Speed-up over dense at batch 1 and 8, deployed too, and how much of the MACs saved the clock sees."""
    models = contestants(build, at)
    called = {"half": HALF, "selected": f"{HALF}, {chosen(at)}"}
    counted = {part: macs(model).total() for part, model in models.items()}
    claims = []
    for batch in (1, 8):
        images = torch.randn(batch, *input_shape(models["dense"]))
        fast = {part: deploy(models[part], images) for part in called}
        seconds = timed(models | {f"{part} deployed": model for part, model in fast.items()}, images, rounds)
        for part, description in called.items():
            what = f"inference of {name}, {description}, batch {batch}"
            saved = (1 - seconds[part] / seconds["dense"]) / (1 - counted[part] / counted["dense"])
            faster, deployed = (seconds["dense"] / seconds[each] for each in (part, f"{part} deployed"))
            floor = FLOORS[part][batch]
            claims.append(Claim.of(what, "x the speed of dense", faster, floor=floor))
            claims.append(Claim.of(f"{what}, deployed", "x the speed of dense", deployed, floor=floor))
            claims.append(Claim.of(f"{what}: time saved over MACs saved", "", saved, floor=SAVED))
    return claims
