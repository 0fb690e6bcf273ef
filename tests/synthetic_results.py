"""A made-up study, written as the files a real one leaves, for tests of tables and figures.

The numbers follow simple formulas of method, density and seed, so that tests can work out by
hand what a table has to say.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.numpy import save_file

GRID = {
    "scratch": ["svite", "set", "gmp"],
    "pretrained": ["omp", "taylor"],
    "densities": [0.6, 0.3, 0.1, 0.05],
    "seeds": [0, 1, 2],
}
STRUCTURED = GRID | {"structured": ["s2vite", "group", "vtp", "sviteplus"], "kept": [0.75, 0.5]}
LOSS = {
    "dense": 0.0, "svite": 2.0, "set": 2.6, "gmp": 1.5, "omp": 3.1, "taylor": 3.6,
    "s2vite": 2.8, "group": 1.7, "vtp": 4.0, "sviteplus": 1.2,
}  # fmt: skip
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
    return round(MACS * (0.04 + 0.96 * density if method in STRUCTURED["structured"] else 1))


def speedup(method: str, density: float, batch: int) -> float:
    """Speed over dense: at batch 1 half of the time goes to what is not operations, at batch 64 a tenth."""
    fixed = 0.5 if batch == 1 else 0.1
    return round(1 / (fixed + (1 - fixed) * macs(method, density) / MACS), 4)


def settings(grid: dict) -> list[tuple[str, float]]:
    """Every sparse method of the grid with each of its densities."""
    sparse = [(m, d) for m in [*grid["scratch"], *grid["pretrained"]] for d in grid["densities"]]
    return sparse + [(m, d) for m in grid.get("structured", []) for d in grid["kept"]]


def write(folder: Path, grid: dict = GRID) -> Path:
    """Every file of the contract for the runs of the grid, half-budget runs and the pair."""
    keys, test = [("dense", 1.0, f"dense-{seed}", seed) for seed in grid["seeds"]], {}
    for method, density in settings(grid):
        keys += [(method, density, f"{method}-{density:g}-{s}", s) for s in grid["seeds"]]
    for method, density, key, seed in keys:
        half = method in grid["pretrained"]
        _write_run(folder, key, method, density, seed, top1(method, density, seed), half)
        test[key] = {"top1": top1(method, density, seed), "top5": 99.9 if seed else 99.6}
    for seed in grid["seeds"]:
        _write_run(folder, f"half-{seed}", "half", 1.0, seed, 96.0, True)
    for key in ("dense", "svite"):
        _write_run(folder, f"pair-{key}", key, 0.6 if key == "svite" else 1.0, 0, 97.0, False)
        test[f"pair-{key}"] = {"top1": 97.5, "top5": 99.9}
    data = {"train": 3500, "validation": 500, "test": 1000, "mean": 0.13, "std": 0.31}
    _json(folder / "metrics/data.json", data | {"classes": 10})
    _json(folder / "metrics/test.json", test)
    _json(folder / "metrics/paired.json", _paired(grid))
    _attention(folder / "arrays/attention.safetensors")
    if "sviteplus" in grid.get("structured", []):
        _tokens(folder / "arrays/tokens.safetensors", min(grid["kept"]))
    return folder


def write_measured(folder: Path, grid: dict = STRUCTURED) -> Path:
    """What `make bench` leaves: the speed of the first seed's models, and claims of which one does not hold."""
    models = {"dense-0": {"macs": MACS} | {str(batch): _timing(DENSE_TIMES[batch], 1.0) for batch in DENSE_TIMES}}
    for method, density in settings(grid):
        faster = {batch: speedup(method, density, batch) for batch in DENSE_TIMES}
        times = {str(b): _timing(DENSE_TIMES[b] / x, x) for b, x in faster.items()}
        models[f"{method}-{density:g}-0"] = {"macs": macs(method, density)} | times
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


def _paired(grid: dict) -> list[dict]:
    rows = []
    for method, density in settings(grid):
        against_svite = {"svite"} - {method} if method in [*grid["scratch"], *grid["pretrained"]] else set()
        for against in {"dense", *against_svite}:
            gap = top1(method, density, 1) - top1(against, 1 if against == "dense" else density, 1)
            row = {"density": density, "method": method, "against": against}
            rows.append(row | {"difference": gap, "low": gap - 0.5, "high": gap + 0.5})
    return sorted(rows, key=lambda row: (row["against"], -row["density"]))


def _write_run(folder, key, method, density, seed, accuracy, half) -> None:
    epochs = EPOCHS // 2 if half else EPOCHS
    epoch, total = np.arange(1, epochs + 1), epochs * STEPS
    _json(folder / f"metrics/train/{key}.json", {
        "method": method, "density": density, "seed": seed,
        "validation_top1": round(accuracy - 0.2, 1), "validation_loss": 0.6,
        "density_achieved": density, "parameters": PARAMETERS, "nonzero": nonzero(method, density),
        "epochs": epochs, "images_seen": epochs * IMAGES,
        "images_charged": (2 if half and method != "half" else 1) * epochs * IMAGES,
        "forward_macs": MACS, "training_cost": round(cost(method, density), 4),
        "macs": macs(method, density), "bytes": 9_000 + 4 * nonzero(method, density),
    })  # fmt: skip
    moving = method in ("svite", "set")
    noise = np.random.default_rng(seed).normal(0, 0.25, epochs)
    start = 0.25 if method in ("omp", "taylor") else 1.0
    itop = density + (1 - density) * (1 - np.exp(-3 * epoch / epochs)) * 0.7 * moving
    _csv(folder / f"curves/epochs/{key}.csv", {
        "epoch": epoch, "step": epoch * STEPS, "images": epoch * IMAGES, "lr": 0.02,
        "train_loss": 0.55 + 1.3 * start * np.exp(-epoch / 3) + (100 - accuracy) / 50,
        "validation_loss": 0.6 + np.exp(-epoch / 3),
        "validation_top1": accuracy - 60 * start * np.exp(-epoch / 1.6) + noise,
        "density": density_at(method, density, epoch / epochs),
        "itop": itop, "fraction": fraction(epoch / epochs) * moving,
    })  # fmt: skip
    if method not in ("dense", "half"):
        _write_topology(folder, key, method, density, total, moving)


def _write_topology(folder, key, method, density, total, moving) -> None:
    step = np.arange(10, int(0.8 * total) + 1, 10) if moving or method == "gmp" else np.array([1])
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


def _tokens(path: Path, keep: float) -> None:
    """Ten discs off the centre, and a selector that keeps the patches with most ink."""
    rows, columns = np.mgrid[:28, :28]
    spots = 14 + 5 * np.stack([np.cos(np.arange(10)), np.sin(np.arange(10))], 1)
    far = [np.hypot(rows - y, columns - x) for y, x in spots]
    images = np.stack([255 * np.exp(-(((distance - 6) / 2) ** 2)) for distance in far]).astype(np.uint8)
    ink = images.reshape(10, 4, 7, 4, 7).astype(float).sum((2, 4)).reshape(10, 16)
    kept = ink.argsort(1).argsort(1) >= 16 - round(16 * keep)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"images": images[:, None], "kept": kept}, path)


def _attention(path: Path) -> None:
    grid = np.stack(np.meshgrid(np.arange(7), np.arange(7), indexing="ij"), -1) - 3.0
    maps = {}
    for index, key in enumerate(("pair-dense", "pair-svite")):
        generator = np.random.default_rng(index)
        centre = generator.normal(0, 1.3, (6, 6, 1, 1, 2))
        width = np.linspace(0.6, 3.5, 6)[:, None, None, None]
        logits = -((grid - centre) ** 2).sum(-1) / width**2 + generator.normal(0, 0.3, (6, 6, 7, 7))
        weights = np.exp(logits)
        maps[key] = (weights / weights.sum((-1, -2), keepdims=True)).astype(np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(maps, path)


def _json(path: Path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n")


def _csv(path: Path, columns: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(columns).to_csv(path, index=False)


if __name__ == "__main__":
    import sys

    write(Path(sys.argv[1]))
