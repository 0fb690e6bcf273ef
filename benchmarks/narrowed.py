"""Structured sparse training against dense training, topology updates and all."""

from collections.abc import Callable, Sequence
from functools import partial

from torch import nn

from benchmarks.claim import Claim
from benchmarks.inference import KEEP, chosen
from benchmarks.interleave import interleave
from benchmarks.training import FOREVER, Training
from svite import tokens
from svite.methods import s2vite
from svite.sparsity.sparsifier import Sparsifier
from svite.vit.narrow import narrow

INTERVAL = 100
WHOLE = 0.6
FLOOR, SELECTED_FLOOR = 1.35, 1.7


def measure(name: str, build: Callable[[], nn.Module], rounds: int, at: Sequence[int], batch: int = 8) -> list[Claim]:
    """Images a second of S2ViTE at 40 % structured sparsity, over dense; an update is one step in 100."""
    variants = {"": (build, FLOOR), f", {chosen(at)}": (partial(_selected, build, at), SELECTED_FLOOR)}
    trainings = {"dense": Training(build(), batch)}
    for variant, (prepare, _) in variants.items():
        trainings[f"ordinary{variant}"] = Training(prepare(), batch, partial(_narrowed, interval=FOREVER))
        trainings[f"update{variant}"] = Training(prepare(), batch, partial(_narrowed, interval=1))
        trainings[f"update{variant}"].step()  # a first step never updates
    seconds = interleave({part: training.step for part, training in trainings.items()}, rounds)
    claims = []
    for variant, (_, floor) in variants.items():
        averaged = ((INTERVAL - 1) * seconds[f"ordinary{variant}"] + seconds[f"update{variant}"]) / INTERVAL
        what = f"training of {name} by S2ViTE with {WHOLE} of heads and neurons{variant}, batch {batch}"
        claims.append(Claim.of(what, "x the speed of dense", seconds["dense"] / averaged, floor=floor))
    return claims


def _selected(build: Callable[[], nn.Module], at: Sequence[int]) -> nn.Module:
    return tokens.select(build(), KEEP, at)


def _narrowed(model: nn.Module, interval: int) -> Sparsifier:
    sparsifier = s2vite(model, heads=WHOLE, neurons=WHOLE, steps=FOREVER, interval=interval)
    narrow(model, sparsifier)
    return sparsifier
