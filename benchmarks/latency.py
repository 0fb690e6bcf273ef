"""How fast the trained models of the study are, each against the dense one in the same run."""

from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from benchmarks.inference import timed
from benchmarks.interleave import spread
from svite.study import DENSE, Grid, key
from svite.train.store import load_model

BATCHES = (1, 64)


def measure(grid: Grid, models: str | Path, rounds: int) -> dict[str, dict[str, Any]]:
    """Milliseconds and speed-up of each setting's first seed, by run and batch; what is not there is left out."""
    first = grid.seeds[0]
    keys = [key(DENSE, 1.0, first), *(key(method, density, first) for method, density in grid.settings)]
    paths = {name: Path(models) / f"{name}.safetensors" for name in keys}
    loaded = {name: load_model(path)[0] for name, path in paths.items() if path.is_file()}
    found: dict[str, dict[str, Any]] = {name: {} for name in loaded}
    for batch in BATCHES if loaded else ():
        for name, entry in _compared(loaded, batch, rounds).items():
            found[name][str(batch)] = entry
    return found


def _compared(models: dict[str, nn.Module], batch: int, rounds: int) -> dict[str, dict[str, Any]]:
    seconds = timed(models, batch, rounds)
    dense = seconds[next(iter(models))]
    entries = {}
    for name, taken in seconds.items():
        faster = spread(dense / taken)
        entries[name] = {
            "milliseconds": round(float(np.median(taken)) * 1e3, 3),
            "speedup": round(faster["value"], 4),
            "interval": [round(value, 4) for value in faster["interval"]],
        }
    return entries
