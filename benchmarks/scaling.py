"""Two processes on two cores against one on one: `measure` starts them, `main` is each of them."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import torch

from benchmarks.claim import Claim
from benchmarks.loops import RECIPE, Fixed, ours
from svite.train.launch import OWN_STORE

MODEL, STEPS, FLOOR = "deit_tiny_patch16_224", 10, 1.7


def main() -> None:
    """Print the seconds of each step, the first ones left out."""
    recipe = RECIPE.model_copy(update={"batch": 32, "interval": 10**6})
    loop = ours(MODEL, "svite", Fixed(MODEL, 3200, recipe.batch), recipe)
    seconds = []
    for _ in range(STEPS + 2):
        begun = time.perf_counter()
        loop.advance()
        seconds.append(time.perf_counter() - begun)
    if loop.share.rank == 0:
        print("steps " + json.dumps(seconds[2:]), flush=True)
    loop.accelerator.end_training()


def started(processes: int) -> float:
    """Seconds of a step, the median of a few, with so many processes of one thread each."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = os.environ | OWN_STORE | {"OMP_NUM_THREADS": "1"}
    command += ["-m", "benchmarks.scaling"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("steps "))
    return float(np.median(json.loads(line.removeprefix("steps "))))


def measure(rounds: int) -> list[Claim]:
    """One and two take turns; the batch is the same in all."""
    if len(os.sched_getaffinity(0)) < 2:
        return []
    ratios = np.array([started(1) / started(2) for _ in range(rounds)])
    what = "two processes on two cores, training of DeiT-Tiny, batch 32"
    return [Claim.of(what, "x one process on one core", ratios, floor=FLOOR)]


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
