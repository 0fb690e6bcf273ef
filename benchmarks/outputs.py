"""What listening to heads and neurons costs in a step that is scored: CPU time inside of the hooks, over a dense pass.

The difference between two whole passes would drown in what a shared machine adds to either.
"""

import time
from collections.abc import Callable
from functools import partial
from unittest.mock import patch

import numpy as np
from torch import nn

import svite
from benchmarks.claim import Claim
from benchmarks.interleave import interleave
from benchmarks.training import FOREVER, Training
from svite.sparsity.outputs import Listener
from svite.sparsity.pool import uniform
from svite.sparsity.rule import Prune
from svite.sparsity.schedule import every
from svite.sparsity.score import output_change
from svite.sparsity.sparsifier import Sparsifier

CUTS = {"heads": (svite.heads, 0.01), "heads and neurons": (svite.structures, None)}  # and their bounds


def measure(name: str, build: Callable[[], nn.Module], rounds: int, batch: int = 16) -> list[Claim]:
    """Forward and backward only: what an update does with the scores is the part `update`'s."""
    claims = []
    for what, (cut, bound) in CUTS.items():
        listened, dense = Training(build(), batch, partial(watched, cut=cut)), Training(build(), batch)
        inside: list[float] = []
        calls = {"listened": partial(backward, listened, inside), "dense": dense.backward}
        seconds = interleave(calls, rounds)["dense"]
        share = np.array(inside[1:]) / seconds
        claims.append(Claim.of(f"listening to {what} of {name}, batch {batch}", "of a dense pass", share, bound))
    return claims


def watched(model: nn.Module, cut: Callable) -> Sparsifier:
    """Dense, for no step ends; its scores are asked for in the first, before an update in the second."""
    rule = Prune(output_change, batches=2)
    return Sparsifier(model, uniform(cut(model), 0.5), rule, every(1, until=FOREVER))


def backward(training: Training, inside: list[float]) -> None:
    """New gradients, and the seconds that listeners took."""
    inside.append(0.0)
    add = Listener._add

    def timed(*arguments: object) -> None:
        start = time.process_time()
        add(*arguments)
        inside[-1] += time.process_time() - start

    with patch.object(Listener, "_add", timed):
        training.backward()
    training.sparsifier.scoring.outputs.forget()
