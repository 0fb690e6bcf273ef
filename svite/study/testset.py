"""The last look: every model of a study on the test images, once, after every choice was made."""

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Int
from safetensors.torch import load_file, save
from torch import Tensor

from svite.data.memory import Data
from svite.io.files import write
from svite.params.study import Grid, key
from svite.tokens import kept
from svite.train.evaluate import accuracy, best, logits
from svite.train.models import load_model
from svite.vit.attention import centre_patch_maps

SELECTING = "sviteplus"


def look(keys: Sequence[str], data: Data, models: str | Path, folder: str | Path) -> pd.DataFrame:
    """Test accuracy of the named models, in percent; the five best guesses of each image are kept beside it.

    Writes `metrics/test.json` and `arrays/predictions.safetensors` below `folder`.

    Raises FileNotFoundError or ValueError for a missing or damaged model, before anything is written.
    """
    scores: dict[str, dict[str, float]] = {}
    guesses: dict[str, Int[Tensor, "image k"]] = {"labels": data.test.labels.to(torch.int16)}
    for name in keys:
        output = logits(load_model(Path(models) / f"{name}.safetensors")[0], data, data.test)
        found = accuracy(output, data.test.labels)
        scores[name] = {"top1": round(found.top1, 4), "top5": round(found.top5, 4)}
        guesses[name] = best(output).to(torch.int16)
    write(Path(folder) / "metrics" / "test.json", json.dumps(scores, indent=1) + "\n")
    write(Path(folder) / "arrays" / "predictions.safetensors", save(guesses))
    return pd.DataFrame(scores).T


def correct(folder: str | Path) -> dict[str, Tensor]:
    """Which test images each model got right, from the predictions that `look` kept."""
    guesses = load_file(Path(folder) / "arrays" / "predictions.safetensors")
    labels = guesses.pop("labels")
    return {name: guess[:, 0] == labels for name, guess in guesses.items()}


def tokens(grid: Grid, data: Data, models: str | Path, folder: str | Path, images: int = 10) -> dict[str, Tensor]:
    """Which patches of the first test image of each class SViTE+ keeps, where the grid has it and keeps fewest.

    Writes `arrays/tokens.safetensors` below `folder`; nothing for a grid without it.
    """
    if SELECTING not in grid.structured:
        return {}
    model, _ = load_model(Path(models) / f"{key(SELECTING, min(grid.kept), grid.seeds[0])}.safetensors")
    chosen = data.test.first(images)
    arrays = {"images": chosen.images.contiguous(), "kept": kept(model, data.normalised(chosen.images))[-1]}
    write(Path(folder) / "arrays" / "tokens.safetensors", save(arrays))
    return arrays


def attention(
    keys: Sequence[str], data: Data, models: str | Path, folder: str | Path, images: int
) -> dict[str, Tensor]:
    """How the centre patch looks at all patches, averaged over `images` test images, of each named model.

    Writes `arrays/attention.safetensors` below `folder`.
    """
    pixels = data.normalised(data.test.first(images).images)
    maps = {name: centre_patch_maps(load_model(Path(models) / f"{name}.safetensors")[0], pixels) for name in keys}
    arrays = {name: value.contiguous() for name, value in maps.items()}
    write(Path(folder) / "arrays" / "attention.safetensors", save(arrays))
    return maps
