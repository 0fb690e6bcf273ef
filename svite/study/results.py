"""A run from its parameters to its files: train, or go on training, and write what came of it."""

import hashlib
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from svite.data.loaded import Loaded
from svite.data.memory import CHECKSUMS, Data
from svite.data.source import InMemory, Source
from svite.data.views import config
from svite.io.files import sha256, write
from svite.params.recipe import Images
from svite.params.run import DENSE, Run
from svite.sparsity.history import Update
from svite.sparsity.sparsifier import Sparsifier
from svite.study.compact import finished
from svite.study.outputs import exclusive, outputs
from svite.train.budget import Spending
from svite.train.builders import make_optimizer
from svite.train.checkpoint import discard
from svite.train.loop import Loop, Trained
from svite.train.models import build, load_model, save_model
from svite.vit import structure
from svite.vit.cost import macs
from svite.vit.surgery_alive import Masked


def data_for(run: Run, folder: str | Path) -> Data:
    """The data folder, read as the run's model wants it.

    Raises ValueError for a model of images that are neither grey nor in colour, or no squares.
    """
    channels, size = (run.model.arguments.get(name, usual) for name, usual in (("in_chans", 3), ("img_size", 224)))
    if channels not in (1, 3) or isinstance(channels, bool):
        raise ValueError(f"model.in_chans is {channels!r}; images are grey (1) or in colour (3).")
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ValueError(f"model.img_size is {size!r}; for images in memory it should be a number of pixels, 28 say.")
    return Data(folder, channels=channels, size=size)


def source_for(run: Run, data: Data | Images) -> Source:
    """The run's images, in memory or read as they are needed."""
    if isinstance(data, Data):
        return InMemory(data, run.recipe, run.seed)
    return Loaded(data, run.recipe, run.seed, config(build(run.model)))


def settings(run: Run, data: Data | Images, start: str | Path | None) -> dict[str, Any]:
    """What a result is a function of."""
    if isinstance(data, Data):
        sums = data.folder / CHECKSUMS
        found = sums.read_text() if sums.exists() else str(data.folder)
    else:
        elsewhere = set() if data.name else {"root"}  # a checkpoint knows names and sizes: the folder may have moved
        found = data.model_dump(mode="json", exclude={"workers", "cache", "cache_gigabytes"} | elsewhere)
    teacher = run.recipe.distillation and Path(run.recipe.distillation.teacher)
    return {
        "run": run.model_dump(mode="json"),
        "data": found,
        "start": sha256(start) if start else None,
        "teacher": sha256(teacher) if teacher and teacher.is_file() else None,
    }


def identity(run: Run, data: Data | Images, start: str | Path | None) -> str:
    """The settings in sixteen letters: another identity never resumes this run's checkpoint."""
    return hashlib.sha256(json.dumps(settings(run, data, start)).encode()).hexdigest()[:16]


def train(
    run: Run,
    data: Data | Images,
    folder: str | Path = "scratch",
    start: str | Path | None = None,
    checkpoint: str | Path | None = None,
    shard: bool = False,
    source: Source | None = None,
) -> Trained:
    """Train a run and write its model, metrics and curves below `folder`.

    A run that was stopped goes on from its checkpoint; a finished one leaves none. By default every run has one of its
    own in `.scratch`; at a `checkpoint` that is named, one of other settings is refused, and one of other images in
    any case. Several processes `shard` the weights and the optimizer's state among them (FSDP2), or each hold all
    (DDP). `source` is `source_for(run, data)`, where that is there already.

    Raises ValueError or FileNotFoundError for what is wrong with the run, the data or `start`, and nothing is written
    then; OSError for files that can't be written, or that another process is at.
    """
    folder = Path(folder)
    before = images_before(start)
    source = source or source_for(run, data)
    loop = Loop(run, source, start, shard)
    checkpoint = checkpoint or folder / ".scratch" / f"{run.key}-{identity(run, data, start)}.ckpt"
    with exclusive(run, folder, checkpoint, loop.accelerator):
        trained = loop.fit(checkpoint, settings(run, data, start) | {"images": source.fingerprint})
        if loop.accelerator.is_main_process:
            write_results(trained, folder, before)
            discard(checkpoint)
        loop.accelerator.wait_for_everyone()
    return trained


def images_before(start: str | Path | None) -> int:
    """The images that the model at `start` was trained on, from the metrics beside it.

    Raises FileNotFoundError where these are missing, ValueError where they don't say.
    """
    if start is None:
        return 0
    if not Path(start).is_file():
        raise FileNotFoundError(f"start: there is no model {start}; train it first, with `svite train` say.")
    metrics = Path(start).parent.parent / "metrics" / "train" / f"{Path(start).stem}.json"
    if not metrics.is_file():
        raise FileNotFoundError(f"{metrics} is missing; it says what the training of {start} cost.")
    try:
        return int(json.loads(metrics.read_text())["images_seen"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"{metrics} does not say what the training of {start} cost ({reason}).") from None


def dense_macs(run: Run) -> float:
    """Multiply-accumulates of one image through the run's model as timm builds it."""
    return macs(build(run.model)).total()


def dense_step(run: Run) -> float:
    """Multiply-accumulates of a dense training step of the run's batch, with the run's optimizer."""
    model = build(run.model)
    return Spending(macs(model)).step(None, make_optimizer(model, run.recipe), run.recipe.batch)


def measured(trained: Trained, small: nn.Module, masked: Masked | None, before: int) -> dict[str, Any]:
    """The numbers of a run: accuracy on validation images, size, and cost with the dense pre-training included."""
    run, last = trained.run, trained.epochs[-1]
    dense, charged, batch = dense_macs(run), trained.images + before, run.recipe.batch
    step = dense_step(run)
    dead = sum(int((~alive).sum()) for alive in masked.masks.values()) if masked else 0
    return {
        "method": run.method,
        "density": run.density,
        "seed": run.seed,
        "validation_top1": round(last["validation_top1"], 6),
        "validation_loss": last["validation_loss"],
        "density_achieved": last["density"],
        "parameters": sum(p.numel() for p in build(run.model).parameters()),
        "nonzero": sum(p.numel() for p in small.parameters()) - dead,
        "epochs": len(trained.epochs),
        "images_seen": trained.images,
        "images_charged": charged,
        "forward_macs": dense,
        "macs": macs(small).total(),
        "training_cost": (trained.macs + step * before / batch) / (step * charged / batch),
    }


def write_results(trained: Trained, folder: Path, before: int) -> None:
    """Model, metrics and curves, each whole or not at all. The model is saved without what is dead as a whole."""
    paths, sparsifier = outputs(trained.run, folder), trained.sparsifier
    small, masked = finished(trained.model, sparsifier)
    save_model(paths["model"], small, trained.run, masked)
    found = measured(trained, small, masked, before) | {"bytes": paths["model"].stat().st_size}
    write(paths["metrics"], json.dumps(found, indent=1) + "\n")
    tables = {"epochs": pd.DataFrame(trained.epochs)}
    if sparsifier:
        tables["updates"] = pd.DataFrame(sparsifier.updates, columns=[field.name for field in fields(Update)])
        tables["layers"] = _layers(trained.run, small, sparsifier)
    for name, table in tables.items():
        write(paths[name], table.to_csv(index=False, float_format="%.8g"))


def _layers(run: Run, small: nn.Module, sparsifier: Sparsifier) -> pd.DataFrame:
    """The units of the sparsifier's summary; where gates were pruned, also the heads and neurons left of each layer."""
    summary = sparsifier.summary().dropna(subset="target")
    if not all(name.endswith(".gate") for name in sparsifier.masks):
        return summary
    kept = structure.left(small)
    rows = [
        {"unit": unit, "shape": str(whole), "achieved": kept.get(unit, 0) / whole, "died": whole - kept.get(unit, 0)}
        for unit, whole in structure.left(build(run.model)).items()
    ]
    return pd.concat([summary, pd.DataFrame(rows).assign(target=run.density, born=0, ever=1.0)])


def ensure(run: Run, data: Data, folder: str | Path = "scratch", start: str | Path | None = None) -> Path:
    """The file of a run's model below `folder`; trained now where it is missing or another run's.

    In the pipeline it is always there. A notebook opened by itself makes the small models that it needs.
    """
    path = Path(folder) / "models" / f"{run.key}.safetensors"
    if not path.exists() or load_model(path)[1] != run:
        train(run, data, folder, start)
    return path


def dense_of(run: Run) -> Run:
    """A dense run, as long as this one, that a method may start from."""
    return Run(method=DENSE, seed=run.seed, model=run.model, recipe=run.recipe)
