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
LOSS = {"dense": 0.0, "svite": 2.0, "set": 2.6, "gmp": 1.5, "omp": 3.1, "taylor": 3.6}
EPOCHS, STEPS, IMAGES, PARAMETERS, PRUNABLE = 15, 55, 3500, 203_402, 200_640
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


def write(folder: Path, grid: dict = GRID) -> Path:
    """Every file of the contract for the runs of the grid, half-budget runs and the pair."""
    keys, test = [("dense", 1.0, f"dense-{seed}", seed) for seed in grid["seeds"]], {}
    for method in [*grid["scratch"], *grid["pretrained"]]:
        for density in grid["densities"]:
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
    return folder


def _paired(grid: dict) -> list[dict]:
    rows = []
    for density in grid["densities"]:
        for method in [*grid["scratch"], *grid["pretrained"]]:
            for against in {"svite", "dense"} - {method}:
                gap = top1(method, density, 1) - top1(against, 1 if against == "dense" else density, 1)
                row = {"density": density, "method": method, "against": against}
                rows.append(row | {"difference": gap, "low": gap - 0.5, "high": gap + 0.5})
    return sorted(rows, key=lambda row: (row["against"], -row["density"]))


def _write_run(folder, key, method, density, seed, accuracy, half) -> None:
    epochs = EPOCHS // 2 if half else EPOCHS
    epoch, total = np.arange(1, epochs + 1), epochs * STEPS
    nonzero = PARAMETERS - PRUNABLE + round(PRUNABLE * density)
    _json(folder / f"metrics/train/{key}.json", {
        "method": method, "density": density, "seed": seed,
        "validation_top1": round(accuracy - 0.2, 1), "validation_loss": 0.6,
        "density_achieved": density, "parameters": PARAMETERS, "nonzero": nonzero,
        "epochs": epochs, "images_seen": epochs * IMAGES,
        "images_charged": (2 if half and method != "half" else 1) * epochs * IMAGES,
        "forward_macs": 3_500_000, "training_cost": round(cost(method, density), 4),
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
    shapes = list(LAYERS.values())
    weights = np.array([np.prod(shape) for shape in shapes])
    asked = np.array([sum(shape) / np.prod(shape) for shape in shapes])
    asked = np.minimum(1, asked * density * weights.sum() / (asked * weights).sum())
    tilt = 1 + (0 if moving else 0.3) * np.cos(np.arange(len(shapes)) * 1.1)
    _csv(folder / f"curves/layers/{key}.csv", {
        "unit": list(LAYERS), "shape": ["x".join(map(str, shape)) for shape in shapes],
        "asked": asked, "achieved": np.minimum(1, asked * tilt), "born": 0, "died": 0,
        "ever": np.minimum(1, asked * 1.5),
    })  # fmt: skip


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
