"""The results of a study as tidy frames: one row a run, an epoch, a topology update, a layer.

Which runs exist is what the grid of `params.yaml` says, never what happens to lie in a
folder: a value dropped from the grid is gone from every table and figure.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors.numpy import load_file

from svite.params.study import DENSE, HALF, key

PAIR = ("pair-dense", "pair-svite")


@dataclass(frozen=True)
class Run:
    """One training run of the grid, and how DVC calls the stage that makes it."""

    method: str
    density: float
    seed: int
    stage: str

    @property
    def key(self) -> str:
        return key(self.method, self.density, self.seed)

    @property
    def target(self) -> str:
        """The stage that makes this run, as `dvc repro` takes it."""
        return f"{self.stage}@{self.key.removeprefix(f'{self.stage}-')}"


def runs_of(grid: Mapping[str, Any]) -> Iterator[Run]:
    """Dense and every method that prunes single weights, in the grid's own order."""
    seeds = grid["seeds"]
    yield from (Run(DENSE, 1.0, seed, DENSE) for seed in seeds)
    for family, stage in (("scratch", "sparse"), ("pretrained", "prune")):
        for method in grid.get(family) or ():
            for density in sorted(grid["densities"], reverse=True):
                yield from (Run(method, float(density), seed, stage) for seed in seeds)


def structured_of(grid: Mapping[str, Any]) -> Iterator[Run]:
    """Every run of the methods that take heads, neurons, features or tokens away."""
    for method in grid.get("structured") or ():
        for share in sorted(grid["kept"], reverse=True):
            yield from (Run(method, float(share), seed, "structure") for seed in grid["seeds"])


def halves_of(grid: Mapping[str, Any]) -> list[Run]:
    """The dense runs on half the budget that pretrained methods start from."""
    return [Run(HALF, 1.0, seed, HALF) for seed in grid["seeds"] if grid.get("pretrained")]


@dataclass(frozen=True)
class Results:
    """Everything that tables and figures draw on."""

    folder: Path
    runs: pd.DataFrame  # a run, dense or of single weights: method, density, seed, what metrics/ says
    epochs: pd.DataFrame  # a run and epoch; the half-budget dense runs too, as method "half"
    updates: pd.DataFrame  # a run and topology update
    layers: pd.DataFrame  # a run and layer
    paired: pd.DataFrame  # method minus another, points of top-1, with a 95 % interval
    data: dict[str, Any]
    structured: pd.DataFrame  # a run of a structured method: the columns of `runs`, density is the kept share
    structured_layers: pd.DataFrame  # a structured run and unit: the columns of `layers`

    @classmethod
    def read(cls, folder: str | Path = ".", *, grid: Mapping[str, Any]) -> "Results":
        """The results of the grid's runs in `folder`; a missing file is named in one sentence."""
        folder, runs, structured = Path(folder), list(runs_of(grid)), list(structured_of(grid))
        sparse = [run for run in runs if run.method != DENSE]
        frame = _run_frame(folder, [*runs, *structured])
        layers = _curves(folder, "layers", [*sparse, *structured])
        return cls(
            folder=folder,
            runs=_those(frame, runs),
            epochs=_curves(folder, "epochs", [*runs, *halves_of(grid)]),
            updates=_curves(folder, "updates", sparse),
            layers=_those(layers, sparse),
            paired=_paired_frame(folder, [*sparse, *structured]),
            data=_json(folder / "metrics/data.json", "data"),
            structured=_those(frame, structured),
            structured_layers=_those(layers, structured),
        )

    @property
    def methods(self) -> list[str]:
        """The sparse methods, in the grid's order."""
        return [method for method in self.runs["method"].unique() if method != DENSE]

    @property
    def densities(self) -> list[float]:
        """The densities of the grid, the densest first."""
        return sorted(self.of(*self.methods)["density"].unique(), reverse=True)

    def of(self, *methods: str) -> pd.DataFrame:
        """The runs of these methods."""
        return self.runs[self.runs["method"].isin(methods)]

    def gap(self, method: str, against: str, density: float) -> Any:
        """The row of `paired` of one method minus another at a density; None where they were not compared."""
        asked = (method, against, density)
        return next((row for row in self.paired.itertuples() if (row.method, row.against, row.density) == asked), None)

    @cached_property
    def pair(self) -> dict[str, dict[str, Any]]:
        """Training metrics of the larger pair of models whose attention is drawn."""
        return {name: _json(self.folder / f"metrics/train/{name}.json", name.replace("-", "@", 1)) for name in PAIR}

    @cached_property
    def attention(self) -> dict[str, np.ndarray]:
        """Maps of attention from the centre patch: (layers, heads, rows, columns) a model."""
        arrays = _load(self.folder / "arrays/attention.safetensors", "evaluate", load_file)
        return {name: arrays[name] for name in PAIR}

    @cached_property
    def tokens(self) -> dict[str, np.ndarray]:
        """Test images (image, channel, row, column) and which of their patches stay (image, patch), row by row."""
        return _load(self.folder / "arrays/tokens.safetensors", "evaluate", load_file)


def _load(path: Path, stage: str, reader: Callable[[Path], Any]) -> Any:
    """What `reader` makes of the file, or one sentence that says how to get the file."""
    hint = f"`dvc repro {stage}` makes it"
    try:
        return reader(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing: {hint}.") from None
    except Exception as error:
        raise ValueError(f"{path} can't be read ({error}): {hint} again.") from error


def _json(path: Path, stage: str) -> Any:
    return _load(path, stage, lambda path: json.loads(path.read_text()))


def _run_frame(folder: Path, runs: list[Run]) -> pd.DataFrame:
    test = _json(folder / "metrics/test.json", "evaluate")
    rows = []
    for run in runs:
        train = _json(folder / f"metrics/train/{run.key}.json", run.target)
        if run.key not in test:
            raise ValueError(
                f"{folder / 'metrics/test.json'} has no run {run.key}: "
                "`dvc repro evaluate` tests every run of the grid."
            )
        named = {"key": run.key, "method": run.method, "density": run.density, "seed": run.seed}
        rows.append(train | test[run.key] | named | {"stage": run.stage, "target": run.target})
    return pd.DataFrame(rows)


def _curves(folder: Path, kind: str, runs: list[Run]) -> pd.DataFrame:
    """The CSV files of one kind, one under the other, each row knowing its run."""
    frames = []
    for run in runs:
        frame = _load(folder / f"curves/{kind}/{run.key}.csv", run.target, pd.read_csv)
        names = {"key": run.key, "method": run.method, "target_density": run.density, "seed": run.seed}
        frames.append(frame.assign(**names))
    frames = [frame for frame in frames if len(frame)] or frames[:1]
    return pd.concat(frames, ignore_index=True)


def _those(frame: pd.DataFrame, runs: list[Run]) -> pd.DataFrame:
    """The rows of these runs."""
    return frame[frame["key"].isin([run.key for run in runs])].reset_index(drop=True)


def _paired_frame(folder: Path, runs: list[Run]) -> pd.DataFrame:
    columns = ["density", "method", "against", "difference", "low", "high"]
    frame = pd.DataFrame(_json(folder / "metrics/paired.json", "evaluate"), columns=columns)
    asked = {(run.method, run.density) for run in runs}
    methods = {run.method for run in runs} | {DENSE}
    keep = [(row.method, row.density) in asked and row.against in methods for row in frame.itertuples()]
    return frame[np.array(keep, dtype=bool)].reset_index(drop=True)
