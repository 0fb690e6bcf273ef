"""The last look: every model of a study on the test images, once, after every choice was made."""

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Int
from safetensors.torch import load_file, save
from torch import Tensor

from svite.train.data import Data
from svite.train.evaluate import accuracy, best, logits
from svite.train.files import write
from svite.train.store import load_model
from svite.vit.attention import centre_patch_maps


def look(keys: Sequence[str], data: Data, models: str | Path, folder: str | Path) -> pd.DataFrame:
    """Test accuracy of the named models, in percent; the five best guesses of each image are kept beside it.

    Writes `metrics/test.json` and `arrays/predictions.safetensors` below `folder`.

    Raises FileNotFoundError or ValueError for a missing or damaged model, before anything is written.
    """
    scores: dict[str, dict[str, float]] = {}
    guesses: dict[str, Int[Tensor, "image k"]] = {"labels": data.test.labels.to(torch.int16)}
    for key in keys:
        output = logits(load_model(Path(models) / f"{key}.safetensors")[0], data, data.test)
        found = accuracy(output, data.test.labels)
        scores[key] = {"top1": round(found.top1, 4), "top5": round(found.top5, 4)}
        guesses[key] = best(output).to(torch.int16)
    write(Path(folder) / "metrics" / "test.json", json.dumps(scores, indent=1) + "\n")
    write(Path(folder) / "arrays" / "predictions.safetensors", save(guesses))
    return pd.DataFrame(scores).T


def correct(folder: str | Path) -> dict[str, Tensor]:
    """Which test images each model got right, from the predictions that `look` kept."""
    guesses = load_file(Path(folder) / "arrays" / "predictions.safetensors")
    labels = guesses.pop("labels")
    return {key: guess[:, 0] == labels for key, guess in guesses.items()}


def attention(
    keys: Sequence[str], data: Data, models: str | Path, folder: str | Path, images: int
) -> dict[str, Tensor]:
    """How the centre patch looks at all patches, averaged over `images` test images, of each named model.

    Writes `arrays/attention.safetensors` below `folder`.
    """
    pixels = data.normalised(data.test.first(images).images)
    maps = {key: centre_patch_maps(load_model(Path(models) / f"{key}.safetensors")[0], pixels) for key in keys}
    arrays = {key: value.contiguous() for key, value in maps.items()}
    write(Path(folder) / "arrays" / "attention.safetensors", save(arrays))
    return maps
