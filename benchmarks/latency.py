"""How fast the trained models of the study are, each against the dense one in the same run."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.interleave import spread, timed
from svite.deployment.deploy import deploy
from svite.params.study import Study
from svite.train.models import load_model
from svite.vit.cost import input_shape, macs

BATCHES = (1, 64)
DEPLOYED = ", deployed"


def measure(study: Study, models: str | Path, rounds: int) -> dict[str, dict[str, Any]]:
    """Milliseconds and speed-up of each setting's first seed, by run and batch; what is not there is left out.

    `speedup` is that of the model in PyTorch over the dense one, `deployed` that of `svite.deploy`'s; `macs` tells
    whether a later model of that name is still the one that was timed.
    """
    planned = study.among("weights", "structures")
    keys = [run.key for run in planned if run.run.seed == study.seeds[0]]
    keys.sort(key=lambda key: key not in {run.key for run in planned if run.label == study.baseline})
    paths = {name: Path(models) / f"{name}.safetensors" for name in keys}
    loaded = {name: load_model(path)[0] for name, path in paths.items() if path.is_file()}
    found: dict[str, dict[str, Any]] = {name: {"macs": macs(model).total()} for name, model in loaded.items()}
    for batch in BATCHES if loaded else ():
        for name, entry in _compared(loaded, batch, rounds).items():
            found[name][str(batch)] = entry
    return found


def _compared(models: dict[str, nn.Module], batch: int, rounds: int) -> dict[str, dict[str, Any]]:
    first = next(iter(models))
    images = torch.randn(batch, *input_shape(models[first]))
    deployed = {f"{name}{DEPLOYED}": deploy(model, images) for name, model in models.items()}
    seconds = timed(models | deployed, images, rounds)
    entries = {}
    for name in models:
        faster = spread(seconds[first] / seconds[name])
        entries[name] = {
            "milliseconds": round(float(np.median(seconds[name])) * 1e3, 3),
            "speedup": round(faster["value"], 4),
            "interval": [round(value, 4) for value in faster["interval"]],
            "deployed": round(float(np.median(seconds[first] / seconds[f"{name}{DEPLOYED}"])), 4),
        }
    return entries
