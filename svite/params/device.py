"""Which device a run takes, and on how many threads: what may be said of a machine, beside the recipe, in its
environment.

`SVITE_DEVICE` is `cpu` or `cuda`; without it a run takes the GPU where there is one. `SVITE_THREADS` is how many
threads a process takes on the CPU (1). Every process that a launcher, a notebook or the pipeline starts inherits both.
"""

import os

import torch

CPU, CUDA = "cpu", "cuda"
MOST = 4096  # threads


def takes_gpu() -> bool:
    """Whether this process trains on a GPU.

    Raises ValueError where `SVITE_DEVICE` asks for what is not there, or there are fewer GPUs than processes.
    """
    asked = os.environ.get("SVITE_DEVICE") or (CUDA if torch.cuda.is_available() else CPU)
    if asked not in (CPU, CUDA):
        raise ValueError(f"SVITE_DEVICE is '{asked}'; it should be {CPU} or {CUDA}, or not be set.")
    if asked == CPU:
        return False
    if not torch.cuda.is_available():
        raise ValueError(f"SVITE_DEVICE is {CUDA}, and torch finds no GPU here; set it to {CPU}.")
    processes, found = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if processes > found:
        raise ValueError(
            f"{processes} processes were started where torch finds {found} GPUs; start so many, or set SVITE_DEVICE to "
            f"{CPU}."
        )
    return True


def working() -> str:
    """What this run works with, for people."""
    processes, device = int(os.environ.get("WORLD_SIZE", "1")), CUDA if takes_gpu() else CPU
    many = f"{processes} processes, each " if processes > 1 else ""
    return f"{many}on {device}, {threads()} thread{'s' * (threads() > 1)}"


def threads() -> int:
    """How many threads this process trains on.

    Raises ValueError for what is no whole number from 1 on, or more than any machine has.
    """
    asked = os.environ.get("SVITE_THREADS") or "1"
    if not asked.isdecimal() or not 1 <= int(asked) <= MOST:
        raise ValueError(f"SVITE_THREADS is '{asked[:20]}'; it should be a whole number from 1 to {MOST:,}.")
    return int(asked)
