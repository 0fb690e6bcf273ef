"""The results of a study as tidy frames: one row a run, an epoch, a topology update, a layer.

Which runs exist is what the study says, never what happens to lie in a folder: what is dropped from `params.yaml` is
gone from every table and figure.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors.numpy import load_file

from svite.params.run import DENSE
from svite.params.study import Planned, Study, load
from svite.report.compare import compare, leaders
from svite.report.style import Look, looks

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Results:
    """Everything that tables and figures draw on. Each row knows its run: key, label, method, group, density, seed."""

    folder: Path
    study: Study
    runs: pd.DataFrame  # a run of single weights, the baseline among them: what metrics/ says of it
    structured: pd.DataFrame  # a run that takes whole parts away: the columns of `runs`, density is the kept share
    attention: pd.DataFrame  # a run whose attention is drawn: the columns of `runs`
    epochs: pd.DataFrame  # a run of single weights, or one that others start from, and an epoch
    updates: pd.DataFrame  # a sparse run of single weights and a topology update
    layers: pd.DataFrame  # a sparse run of single weights and a layer
    structured_layers: pd.DataFrame  # a run that takes whole parts away and a unit: the columns of `layers`
    data: dict[str, Any]

    @classmethod
    def read(cls, folder: str | Path = ".", study: Study | None = None) -> "Results":
        """The results of a study in `folder`, by default that folder's; a missing file is named in one sentence."""
        folder = Path(folder)
        study = study or load(folder / "params.yaml")
        runs = _run_frame(folder, study.among("weights", "structures", "attention"))
        sparse = [each for each in study.among("weights", "structures") if each.run.method != DENSE]
        layers = _curves(folder, "layers", sparse)
        return cls(
            folder=folder,
            study=study,
            runs=_those(runs, "weights"),
            structured=_those(runs, "structures"),
            attention=_those(runs, "attention"),
            epochs=_curves(folder, "epochs", study.among("weights", "start")),
            updates=_curves(folder, "updates", [each for each in sparse if each.group == "weights"]),
            layers=_those(layers, "weights"),
            structured_layers=_those(layers, "structures"),
            data=_json(folder / "metrics/data.json", "data"),
        )

    @property
    def labels(self) -> list[str]:
        """The sparse settings of single weights, in the study's order."""
        return [label for label in self.runs["label"].unique() if label != self.study.baseline]

    @property
    def structured_labels(self) -> list[str]:
        """The settings that take whole parts away, in the study's order."""
        return list(self.structured["label"].unique())

    @property
    def densities(self) -> list[float]:
        """The densities of single weights, the densest first."""
        return sorted(self.of(*self.labels)["density"].unique(), reverse=True)

    @cached_property
    def looks(self) -> dict[str, Look]:
        """How each setting is drawn, by its label."""
        return looks(self.study)

    def of(self, *labels: str) -> pd.DataFrame:
        """The runs of these settings of single weights."""
        return self.runs[self.runs["label"].isin(labels)]

    def gap(self, label: str, against: str, density: float) -> Any:
        """The row of `paired` of one setting minus another at a density; None where they were not compared."""
        asked = (label, against, density)
        return next((row for row in self.paired.itertuples() if (row.label, row.against, row.density) == asked), None)

    @cached_property
    def paired(self) -> pd.DataFrame:
        """A setting minus another at a density: points of top-1, with a 95 % interval."""
        runs = pd.concat([self.runs, self.structured], ignore_index=True)
        return compare(runs, self._right, self.study.baseline, self.study.reference)

    @cached_property
    def leaders(self) -> dict[float, str]:
        """The setting of single weights with the highest mean at a density, where it is resolved from the next."""
        return leaders(self.of(*self.labels), self._right)

    @cached_property
    def _right(self) -> dict[str, np.ndarray]:
        """Which test images each run of `runs` and `structured` got right."""
        labels = self.test["labels"]
        right = {}
        for key in [*self.runs["key"], *self.structured["key"]]:
            best = self.arrays(key)["predictions"][:, 0]
            if best.shape != labels.shape:
                raise ValueError(f"{key} was tested on other images: `dvc repro evaluate@{key}` tests it again.")
            right[key] = best == labels
        return right

    @cached_property
    def test(self) -> Arrays:
        """The test images' `labels`, and of each class the first image, as `samples` (n, channel, row, column)."""
        return _load(self.folder / "arrays/test.safetensors", "data", load_file)

    def arrays(self, key: str) -> Arrays:
        """What a run's model said of the test images."""
        return _load(self.folder / f"arrays/runs/{key}.safetensors", f"evaluate@{key}", load_file)


def target(planned: Planned) -> str:
    """The stage that trains a run, as `dvc repro` takes it."""
    return f"{'dense' if planned.run.method == DENSE else 'train'}@{planned.key}"


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


def _names(planned: Planned) -> dict[str, Any]:
    """What each row says of its run, but for its density: curves have a column of that name already."""
    run = planned.run
    return {
        "key": planned.key,
        "label": planned.label,
        "method": run.method,
        "group": planned.group,
        "seed": run.seed,
    }


def _run_frame(folder: Path, runs: Iterable[Planned]) -> pd.DataFrame:
    rows = []
    for planned in runs:
        train = _json(folder / f"metrics/train/{planned.key}.json", target(planned))
        test = _json(folder / f"metrics/test/{planned.key}.json", f"evaluate@{planned.key}")
        named = _names(planned) | {"density": planned.run.density, "target": target(planned)}
        rows.append(train | test | named)
    return pd.DataFrame(rows)


def _curves(folder: Path, kind: str, runs: Iterable[Planned]) -> pd.DataFrame:
    """The CSV files of one kind, one under the other, each row knowing its run."""
    frames = [pd.DataFrame(columns=["key", "label", "method", "group", "seed", "target_density"])]
    for planned in runs:
        frame = _load(folder / f"curves/{kind}/{planned.key}.csv", target(planned), pd.read_csv)
        frames.append(frame.assign(**_names(planned), target_density=planned.run.density))
    frames = [frame for frame in frames if len(frame)] or frames[-1:]
    return pd.concat(frames, ignore_index=True)


def _those(frame: pd.DataFrame, group: str) -> pd.DataFrame:
    """The rows of the runs of this group."""
    return frame[frame["group"] == group].reset_index(drop=True)
