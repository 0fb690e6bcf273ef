"""A made-up study, written as the files a real one leaves, for tests of tables and figures.

The numbers follow simple formulas of method, density and seed, so that tests can work out by
hand what a table has to say.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.numpy import load_file, save_file

from svite.params.study import Planned, Study

MODEL = {"name": "vit_tiny_patch16_224", "img_size": 28, "patch_size": 7, "in_chans": 1, "num_classes": 10}
DENSE, HALF = {"label": "Dense", "method": "dense"}, "Dense, half budget"
START = {"label": HALF, "method": "dense", "name": "half", "group": "start", "share": 0.5}
LABELS = {  # of the methods of single weights, and of those that take whole parts away
    "svite": "SViTE", "set": "SET", "gmp": "GMP", "omp": "OMP", "taylor": "Taylor",
    "s2vite": "S2ViTE", "group": "Group sparsity", "vtp": "VTP", "sviteplus": "SViTE+", "layer": "Layer sparsity",
}  # fmt: skip
LARGER = [
    {"label": "Dense, larger", "method": "dense", "name": "large-dense", "group": "attention", "seeds": [0]},
    {"label": "SViTE, larger", "method": "svite", "name": "large-svite", "group": "attention", "seeds": [0],
     "densities": [0.6]},
]  # fmt: skip
PRETRAINED = ("omp", "taylor")


def setting(method: str, **more) -> dict:
    """A setting of a method, as `params.yaml` would have it."""
    return (
        {"label": LABELS.get(method, method), "method": method}
        | ({"start": HALF} if method in PRETRAINED else {})
        | more
    )


def study(
    methods=("svite", "set", "gmp", "omp", "taylor"),
    densities=(0.6, 0.3, 0.1, 0.05),
    seeds=(0, 1, 2),
    structured=(),
    kept=(0.75, 0.5),
    attention=True,
    more=(),
    **given,
) -> Study:
    """A study of these methods; SViTE is its reference and GMP the rival, if they are among them."""
    settings = [DENSE, *([START] if {*methods} & {*PRETRAINED} else []), *map(setting, methods), *more]
    settings += [setting(method, group="structures", densities=[*kept]) for method in structured]
    roles = {"reference": "svite", "rival": "gmp"} if {"svite", "gmp"} <= {*methods} else {"reference": "svite"}
    roles = {role: LABELS[method] for role, method in roles.items() if method in methods}
    values = {
        "data": "data", "model": MODEL, "recipe": {"epochs": EPOCHS}, "seeds": [*seeds], "densities": [*densities],
        "settings": settings + LARGER * attention,
    }  # fmt: skip
    return Study.of(**values | roles | given)


PARTS = ("s2vite", "group", "vtp", "sviteplus")
LOSS = {
    "dense": 0.0, "svite": 2.0, "set": 2.6, "gmp": 1.5, "omp": 3.1, "taylor": 3.6,
    "s2vite": 2.8, "group": 1.7, "vtp": 4.0, "sviteplus": 1.2, "layer": 1.0, "rigl": 1.9,
}  # fmt: skip
TEST = 1000
EPOCHS, STEPS, IMAGES, PARAMETERS, PRUNABLE, MACS = 15, 55, 3500, 203_402, 200_640, 3_500_000
DENSE_TIMES = {1: 0.9, 64: 12.0}  # milliseconds of the dense model by batch
SHAPES = {"qkv": (192, 64), "proj": (64, 64), "fc1": (256, 64), "fc2": (64, 256)}
LAYERS = {
    "patch_embed.proj": (64, 1, 7, 7),
    **{f"blocks.{b}.{name}": shape for b in range(4) for name, shape in SHAPES.items()},
    "head": (10, 64),
}


def top1(method: str, density: float, seed: int) -> float:
    """Accuracy that falls faster for some methods, and by 0.1 a seed about its mean."""
    return round(97.2 - LOSS[method] * (1 / density) ** 0.5 + LOSS[method] + 0.3 * (seed - 1), 1)


def cost(method: str, density: float) -> float:
    """Operations of training, dense run = 1; a pretrained method pays for its dense half."""
    shares = {"dense": 1.0, "gmp": density + (1 - density) / 3, "omp": 0.5 + density / 2}
    return shares.get("omp" if method == "taylor" else method, density)


def fraction(progress: np.ndarray) -> np.ndarray:
    return np.where(progress < 0.8, 0.25 * (1 + np.cos(np.pi * progress / 0.8)), 0.0)


def cubic(density: float, progress: np.ndarray) -> np.ndarray:
    """The density of gradual pruning, which begins at 10 % of the training and ends at 80 %."""
    return density + (1 - density) * (1 - np.clip((progress - 0.1) / 0.7, 0, 1)) ** 3


def density_at(method: str, density: float, progress: np.ndarray) -> np.ndarray:
    return cubic(density, progress) if method == "gmp" else np.full_like(progress, density)


def nonzero(method: str, density: float) -> int:
    """Parameters that are left: SViTE+ has half of its weights, whatever it keeps of the tokens."""
    return PARAMETERS - PRUNABLE + round(PRUNABLE * (0.5 if method == "sviteplus" else density))


def macs(method: str, density: float) -> int:
    """Operations of the saved model: only what structured methods take away is gone."""
    return round(MACS * (0.04 + 0.96 * density if method in PARTS else 1))


def speedup(method: str, density: float, batch: int) -> float:
    """Speed over dense: at batch 1 half of the time goes to what is not operations, at batch 64 a tenth."""
    fixed = 0.5 if batch == 1 else 0.1
    return round(1 / (fixed + (1 - fixed) * macs(method, density) / MACS), 4)


def write(folder: Path, study: Study, classes: int = 10) -> Path:
    """Every file of the contract for the runs of the study."""
    for planned in study.runs:
        _write_run(folder, planned)
        if planned.group != "start":
            run = planned.run
            predict(folder, planned.key, top1(run.method, run.density, run.seed), classes)
            scores = {"top1": top1(run.method, run.density, run.seed), "top5": 99.9 if run.seed else 99.6}
            _json(folder / f"metrics/test/{planned.key}.json", scores | {"images": TEST})
    data = {"train": 3500, "validation": 500, "test": TEST, "mean": 0.13, "std": 0.31}
    _json(folder / "metrics/data.json", data | {"classes": classes})
    labels = (np.arange(TEST) % classes).astype(np.int16)
    _arrays(folder / "arrays/test.safetensors", {"labels": labels, "samples": _samples(classes)})
    for index, planned in enumerate(study.among("attention")):
        path = folder / f"arrays/runs/{planned.key}.safetensors"
        _arrays(path, load_file(path) | {"attention": _maps(index), "attended": np.array([100])})
    for planned in study.among("weights", "structures"):
        if planned.run.method == "sviteplus":
            path = folder / f"arrays/runs/{planned.key}.safetensors"
            _arrays(path, load_file(path) | {"kept": _kept(_samples(classes), planned.run.density)})
    return folder


def predict(folder: Path, key: str, accuracy: float, classes: int = 10) -> None:
    """Predictions of a run that are right on the first images, as many as its accuracy says."""
    labels = np.arange(TEST) % classes
    best = np.where(np.arange(TEST) < round(accuracy * TEST / 100), labels, (labels + 1) % classes)
    guesses = np.stack([best + turn for turn in range(5)], 1) % classes
    _arrays(folder / f"arrays/runs/{key}.safetensors", {"predictions": guesses.astype(np.int16)})


def write_measured(folder: Path, study: Study) -> Path:
    """What `make bench` leaves: the speed of the first seed's models, and claims of which one does not hold."""
    models = {}
    for planned in study.among("weights", "structures"):
        method, density = planned.run.method, planned.run.density
        if planned.run.seed == study.seeds[0] or method == "dense":
            faster = {batch: speedup(method, density, batch) for batch in DENSE_TIMES}
            times = {str(b): _timing(DENSE_TIMES[b] / x, x) for b, x in faster.items()}
            models[planned.key] = {"macs": macs(method, density)} | times
    machine = {"processor": "An Abacus", "threads": 1}
    _json(folder / "reports/latency.json", {"machine": machine, "models": models})
    _json(folder / "reports/bench.json", {"machine": machine, "claims": CLAIMS, "card": {"rows": CARD}})
    return folder


def _timing(milliseconds: float, faster: float) -> dict:
    interval = [faster - 0.02, faster + 0.02]
    return {"milliseconds": round(milliseconds, 4), "speedup": faster, "interval": interval, "deployed": 2 * faster}


def _row(model: str, runtime: str, batch: int, faster: float) -> dict:
    return {
        "model": model, "runtime": runtime, "batch": batch, "milliseconds": 100.0 * batch / faster,
        "images_a_second": 10.0 * faster,
        "speedup": {"value": faster, "interval": [faster - 0.1, faster + 0.1], "quartiles": [faster, faster]},
        "megabytes_peak": 12.0, "megabytes_stored": 88.2 / faster, "of_the_limit": 0.5, "limited_by": "operations",
    }  # fmt: skip


WAYS = {
    ("dense", "eager"): 1.0, ("dense", "OpenVINO"): 1.2, ("dense", "svite.deploy"): 1.1,
    ("80% sparse", "svite.deploy"): 2.0, ("90% sparse", "svite.deploy"): 3.25, ("half, tokens 0.7", "eager"): 3.0,
}  # fmt: skip
CARD = [_row(*way, batch, faster) for batch in (1, 8, 64) for way, faster in WAYS.items()]


def _claim(name, unit, value, bound=None, floor=None) -> dict:
    low, high = round(value - 0.05, 4), round(value + 0.05, 4)
    holds = low >= floor if floor else high <= bound if bound else None
    return {
        "name": name, "unit": unit, "value": value, "interval": [low, high], "quartiles": [low, high],
        "bound": bound, "floor": floor, "holds": holds,
    }  # fmt: skip


SMALL = "inference of DeiT-Small, half of the heads and neurons"
CLAIMS = [
    _claim("topology update of DeiT-Small, density 0.3", "x dense step of batch 16", 0.18, bound=1.0),
    _claim("training step of DeiT-Tiny, batch 16, density 0.3, without an update", "x dense", 1.0),
    _claim(f"{SMALL}, batch 8", "x the speed of dense", 2.1234, floor=2.0),
    _claim(f"{SMALL}, batch 8: time saved over MACs saved", "", 0.9, floor=0.8),
    _claim(f"{SMALL}, tokens kept at 0.7 from layers 4, 7, 10, batch 8", "x the speed of dense", 2.9, floor=3.0),
    _claim("training of DeiT-Small by S2ViTE with 0.6 of heads and neurons, batch 8", "x the speed of dense", 1.4),
    _claim(f"{SMALL}, batch 8, against Torch-Pruning", "x its time", 0.95, bound=1.02),
    _claim("layer of 1536 x 384, 1536 tokens, 80% sparse", "x the speed of dense", 2.3, floor=2.0),
    _claim("deploying DeiT-Small, 80% sparse, batch 8", "x the speed of dense", 1.4, floor=1.5),
]


def _write_run(folder: Path, planned: Planned) -> None:
    key, (method, density, seed) = planned.key, (planned.run.method, planned.run.density, planned.run.seed)
    accuracy, epochs, moving = top1(method, density, seed), planned.run.recipe.epochs, method in ("svite", "set")
    epoch, total = np.arange(1, epochs + 1), epochs * STEPS
    _json(folder / f"metrics/train/{key}.json", {
        "method": method, "density": density, "seed": seed,
        "validation_top1": round(accuracy - 0.2, 1), "validation_loss": 0.6,
        "density_achieved": density, "parameters": PARAMETERS, "nonzero": nonzero(method, density),
        "epochs": epochs, "images_seen": epochs * IMAGES,
        "images_charged": (EPOCHS if planned.start else epochs) * IMAGES,
        "forward_macs": MACS, "training_cost": round(cost(method, density), 4),
        "macs": macs(method, density), "bytes": 9_000 + 4 * nonzero(method, density),
    })  # fmt: skip
    noise = np.random.default_rng(seed).normal(0, 0.25, epochs)
    start = 0.25 if planned.start else 1.0
    itop = density + (1 - density) * (1 - np.exp(-3 * epoch / epochs)) * 0.7 * moving
    _csv(folder / f"curves/epochs/{key}.csv", {
        "epoch": epoch, "step": epoch * STEPS, "images": epoch * IMAGES, "lr": 0.02,
        "train_loss": 0.55 + 1.3 * start * np.exp(-epoch / 3) + (100 - accuracy) / 50,
        "validation_loss": 0.6 + np.exp(-epoch / 3),
        "validation_top1": accuracy - 60 * start * np.exp(-epoch / 1.6) + noise,
        "density": density_at(method, density, epoch / epochs),
        "itop": itop, "fraction": fraction(epoch / epochs) * moving,
    })  # fmt: skip
    if method != "dense":
        _write_topology(folder, key, method, density, total, moving)


def _write_topology(folder, key, method, density, total, moving) -> None:
    first, last = round(0.1 * total) + 4, int(0.8 * total)
    step = np.linspace(first, last, 12).round().astype(int) if moving or method == "gmp" else np.array([1])
    share = density_at(method, density, step / total)
    alive = np.round(share * PRUNABLE).astype(int)
    born = np.round(fraction(step / total) * alive * 0.7).astype(int) * moving
    _csv(folder / f"curves/updates/{key}.csv", {
        "step": step, "fraction": fraction(step / total) * moving, "density": share,
        "alive": alive, "born": born, "died": born,
        "itop": density + (1 - density) * (1 - np.exp(-3 * step / total)) * 0.7 * moving,
    })  # fmt: skip
    if method in ("s2vite", "group", "vtp"):
        _write_units(folder, key, method, density)
        return
    shapes = list(LAYERS.values())
    weights = np.array([np.prod(shape) for shape in shapes])
    asked = np.array([sum(shape) / np.prod(shape) for shape in shapes])
    asked = np.minimum(1, asked * density * weights.sum() / (asked * weights).sum())
    tilt = 1 + (0 if moving else 0.3) * np.cos(np.arange(len(shapes)) * 1.1)
    _csv(folder / f"curves/layers/{key}.csv", {
        "unit": list(LAYERS), "shape": ["x".join(map(str, shape)) for shape in shapes],
        "target": asked, "achieved": np.minimum(1, asked * tilt), "born": 0, "died": 0,
        "ever": np.minimum(1, asked * 1.5),
    })  # fmt: skip


def _write_units(folder, key, method, density) -> None:
    """The units of structured methods; those of group sparsity compete across layers."""
    sites = ("attn.qkv.gate", "attn.proj.gate", "mlp.fc1.gate", "mlp.fc2.gate")
    parts = sites if method == "vtp" else ("attn.heads", "mlp.neurons")
    units = [f"blocks.{block}.{part}" for block in range(4) for part in parts]
    tilt = {"group": np.linspace(-0.25, 0.25, 4)}.get(method, np.zeros(4)).repeat(len(parts))
    _csv(folder / f"curves/layers/{key}.csv", {
        "unit": units, "shape": "1x4", "target": density, "achieved": np.clip(density + tilt, 0, 1),
        "born": 0, "died": 0, "ever": 1.0,
    })  # fmt: skip


def _samples(classes: int) -> np.ndarray:
    """Discs off the centre."""
    rows, columns = np.mgrid[:28, :28]
    turn = np.arange(classes)
    spots = 14 + 5 * np.stack([np.cos(turn), np.sin(turn)], 1)
    far = [np.hypot(rows - y, columns - x) for y, x in spots]
    return np.stack([255 * np.exp(-(((distance - 6) / 2) ** 2)) for distance in far]).astype(np.uint8)[:, None]


def _kept(images: np.ndarray, keep: float) -> np.ndarray:
    """A selector that keeps the patches that are brightest."""
    bright = images.reshape(len(images), 4, 7, 4, 7).astype(float).sum((2, 4)).reshape(len(images), 16)
    return bright.argsort(1).argsort(1) >= 16 - round(16 * keep)


def _maps(index: int) -> np.ndarray:
    grid = np.stack(np.meshgrid(np.arange(7), np.arange(7), indexing="ij"), -1) - 3.0
    generator = np.random.default_rng(index)
    centre = generator.normal(0, 1.3, (6, 6, 1, 1, 2))
    width = np.linspace(0.6, 3.5, 6)[:, None, None, None]
    logits = -((grid - centre) ** 2).sum(-1) / width**2 + generator.normal(0, 0.3, (6, 6, 7, 7))
    weights = np.exp(logits)
    return (weights / weights.sum((-1, -2), keepdims=True)).astype(np.float32)


def _arrays(path: Path, arrays: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)


def _json(path: Path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n")


def _csv(path: Path, columns: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(columns).to_csv(path, index=False)


if __name__ == "__main__":
    import sys

    write(Path(sys.argv[1]), study())
