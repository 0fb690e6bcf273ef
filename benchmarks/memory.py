"""Memory that a sparsifier adds, in bytes a parameter, measured in a process of its own (Linux)."""

import ctypes
import gc
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import timm
import torch
from timm.models.vision_transformer import VisionTransformer

from benchmarks.claim import Claim
from benchmarks.training import FOREVER, Training
from svite.methods import svite

BOUND = 1.25
HELD, MOMENT = "tensors held between updates", "an update by itself, for a moment"


def measure(name: str, runs: int = 3, density: float = 0.3, batch: int = 16) -> list[Claim]:
    """What a sparsifier takes, in `runs` processes: tensors, growth of the process, its peak while it trains with
    updates beside that of dense training, and what an update alone takes for a moment (when no activations are held).

    malloc is told to hand freed memory back at once, so that the growth is that of live memory.
    """
    settings = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.memory", name, str(density), str(batch)]
    root = Path(__file__).parents[1]
    found = [json.loads(subprocess.check_output(command, env=os.environ | settings, cwd=root)) for _ in range(runs)]
    held, resident, highest, peak = (
        np.array([run[key] for run in found]) for key in ("held", "resident", "highest", "peak")
    )
    what, unit = f"memory of {name}, density {density}", "bytes a parameter"
    return [
        Claim.of(f"{what}: {HELD}", unit, held, BOUND),
        Claim.of(f"{what}: growth of the process", unit, resident, BOUND),
        Claim.of(f"{what}: higher peak of training, batch {batch}, an update at every step", unit, highest),
        Claim.of(f"{what}: {MOMENT}", unit, peak),
    ]


def added(name: str, density: float, batch: int) -> dict[str, float]:
    """Bytes a parameter; to be called in a fresh process. A toy comes first, for what Python and torch load once."""
    sparsify = partial(svite, density=density, steps=FOREVER, interval=1)
    _train(Training(VisionTransformer(img_size=32, embed_dim=24, depth=1, num_heads=3), batch, sparsify))
    training = Training(timm.create_model(name), batch)
    _train(training)
    dense = _highest(partial(_train, training))
    held, resident = _tensors(), _resident()
    training.sparsifier = sparsify(training.model)
    _train(training)
    held, resident = _tensors() - held, _resident() - resident
    highest = _highest(partial(_train, training)) - dense
    training.backward()
    peak = rise(training.before_step)
    parameters = sum(parameter.numel() for parameter in training.model.parameters())
    found = {"held": held, "resident": resident, "highest": highest, "peak": peak}
    return {key: value / parameters for key, value in found.items()}


def _train(training: Training) -> None:
    for _ in range(3):
        training.step()


def _tensors() -> int:
    """Bytes of every tensor storage alive, shared ones counted once."""
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
    tensors += [tensor.grad for tensor in tensors if tensor.is_leaf and tensor.grad is not None]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def _status(field: str) -> int:
    return 1024 * int(re.search(rf"{field}:\s*(\d+)", Path("/proc/self/status").read_text())[1])


def _resident() -> int:
    """Bytes of memory that is not a file's: code that was loaded meanwhile does not count."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return _status("RssAnon")


def rise(call: Callable[[], None]) -> int:
    """The highest resident memory during `call`, above that before."""
    _resident()
    before = _status("VmRSS")
    return _highest(call) - before


def _highest(call: Callable[[], None]) -> int:
    """The highest resident memory during `call`."""
    _resident()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    call()
    return _status("VmHWM")


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(added(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]))))
