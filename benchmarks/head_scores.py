"""`python -m benchmarks.head_scores`: which score of a head or neuron says what the loss is without it.

The study's dense model is trained on its digits. After some epochs every head, and every eighth neuron, is scored from
each of 40 batches: by the batch's sum, |weight times gradient summed over what reads it|, and image by image. The truth
is the size of the change of the mean loss over 1,000 training images when those weights are zero. Printed are
Spearman's rank correlations within a layer, averaged over layers and seeds: of a batch's scores, and of their mean.
"""

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import svite
from svite.data.memory import order
from svite.data.source import InMemory
from svite.params import study
from svite.params.run import DENSE
from svite.sparsity.cut import Unit
from svite.sparsity.pool import uniform
from svite.sparsity.rule import Prune
from svite.sparsity.schedule import every
from svite.sparsity.score import output_change
from svite.sparsity.sparsifier import Sparsifier
from svite.study.results import data_for
from svite.train.loop import Loop

BATCHES, TRUTH, EVERY = 40, 1000, {"heads": 1, "neurons": 8}
Images = tuple[Tensor, Tensor]


def of_batch(unit: Unit, weights: Mapping[str, Tensor]) -> Tensor:
    """What gradients of weights alone tell."""
    part = unit.parts[-1]
    return part.cut.gather(weights[part.name].detach() * weights[part.name].grad).abs()


def scored(model: nn.Module, images: Images, batch: int) -> dict[str, dict[str, Tensor]]:
    """Both scores of each unit, a row a batch."""
    sparsifier = Sparsifier(model, uniform(svite.structures(model), 0.5), Prune(output_change, batches=2), every(1, 2))
    found: dict[str, dict[str, list[Tensor]]] = {name: {"batch": [], "image": []} for name in sparsifier.units}
    for part in list(zip(*(each.split(batch) for each in images), strict=True))[:BATCHES]:
        model.zero_grad()
        cross_entropy(model(part[0]), part[1]).backward()
        for name, unit in sparsifier.units.items():
            found[name]["batch"].append(of_batch(unit, sparsifier.weights)[0])
            found[name]["image"].append(sparsifier.scoring.now(output_change, name, 0)[0])
        sparsifier.scoring.outputs.forget()
    sparsifier.scoring.outputs.remove()
    model.zero_grad()
    return {name: {how: torch.stack(rows) for how, rows in scores.items()} for name, scores in found.items()}


@torch.no_grad()
def true_change(model: nn.Module, unit: Unit, images: Images) -> Tensor:
    """The size of the change of the loss without each member that is looked at."""
    part, whole = unit.parts[-1], cross_entropy(model(images[0]), images[1])
    weight, changes = model.get_parameter(part.name), []
    before = weight.clone()
    for member in range(0, unit.members, EVERY[unit.kind]):
        alive = torch.ones(1, unit.members)
        alive[0, member] = 0
        weight.mul_(part.cut.spread(alive, weight.shape))
        changes.append(abs(float(cross_entropy(model(images[0]), images[1]) - whole)))
        weight.copy_(before)
    return torch.tensor(changes)


def spearman(one: Tensor, other: Tensor) -> float:
    """Rank correlation; no two scores are equal."""
    return float(torch.corrcoef(torch.stack([each.argsort().argsort().double() for each in (one, other)]))[0, 1])


def correlations(model: nn.Module, images: Images, batch: int) -> Iterator[dict]:
    """One row a layer and score."""
    scores = scored(model, images, batch)
    for unit in svite.structures(model):
        truth, step = true_change(model, unit, tuple(each[:TRUTH] for each in images)), EVERY[unit.kind]
        for how, rows in scores[unit.name].items():
            single = [spearman(row[::step], truth) for row in rows]
            averaged = spearman(rows.mean(0)[::step], truth)
            yield {"of": unit.kind, "score": how, "a batch": sum(single) / len(single), "40 batches": averaged}


def main() -> None:
    """Train and look."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.head_scores")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--epochs", type=int, nargs="+", default=[3, 7, 13], help="after which to look")
    arguments = parser.parse_args()
    rows = []
    planned = study.load()
    for plan in planned.runs:
        if plan.run.method == DENSE and plan.label == planned.baseline:
            data = data_for(plan.run, arguments.data)
            mixed = order(len(data.train), seed=0, epoch=0)  # they lie class by class
            images = data.normalised(data.train.images)[mixed], data.train.labels[mixed]
            loop = Loop(plan.run, InMemory(data, plan.run.recipe, plan.run.seed))
            while loop.step < max(arguments.epochs) * loop.per_epoch:
                loop.model.train()
                loop.advance()
                if loop.step in [epoch * loop.per_epoch for epoch in arguments.epochs]:
                    found = correlations(loop.plain_model, images, plan.run.recipe.batch)
                    rows += [{"epoch": loop.step // loop.per_epoch, **row} for row in found]
    table = pd.DataFrame(rows).groupby(["of", "epoch", "score"])[["a batch", "40 batches"]]
    print(table.mean().round(2).to_string())


if __name__ == "__main__":
    main()
