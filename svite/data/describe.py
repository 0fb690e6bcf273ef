"""What a data set holds, in numbers and in one figure."""

import json
from pathlib import Path
from typing import Any

import torch
from matplotlib import pyplot
from matplotlib.figure import Figure

from svite.data.memory import Data, Split, augmented
from svite.io import files
from svite.params.recipe import Recipe
from svite.sparsity.scoring import seeded


def splits(data: Data) -> dict[str, Split]:
    """The three splits by name; of the test split only sizes and classes are told."""
    return {"train": data.train, "validation": data.validation, "test": data.test}


def facts_of(data: Data, folder: str | Path) -> dict[str, Any]:
    """Sizes, classes and pixel moments, also into `metrics/data.json` below `folder`."""
    mean, deviation = (moment.mean().item() for moment in data.moments)
    facts = {name: len(split) for name, split in splits(data).items()}
    facts |= {"mean": mean, "std": deviation, "classes": int(data.train.labels.max()) + 1}
    files.write(Path(folder) / "metrics" / "data.json", json.dumps(facts, indent=1) + "\n")
    return facts


def figure(data: Data, recipe: Recipe | None = None) -> Figure:
    """The first training image of each class, and one augmentation of it."""
    classes = data.train.labels.unique()
    chosen = torch.stack([(data.train.labels == label).nonzero()[0, 0] for label in classes])
    images = data.train.images[chosen]
    changed = augmented(images, recipe or Recipe(), seeded(0, 0, "figure"))
    drawn = pyplot.figure(figsize=(len(classes), 2.2), layout="constrained")
    for axes, image in zip(drawn.subplots(2, len(classes)).flat, torch.cat([images, changed]), strict=True):
        axes.imshow(image.permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray_r")
        axes.set_axis_off()
    pyplot.close(drawn)  # a notebook shows what a cell returns; an open figure it would show twice
    return drawn
