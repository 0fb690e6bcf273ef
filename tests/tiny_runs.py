"""Tiny data folders and training runs, for the tests of whole runs."""

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from svite.data.memory import CHECKSUMS, Data
from svite.data.source import InMemory
from svite.io.files import sha256
from svite.params.recipe import Model, Recipe
from svite.params.run import Run
from svite.train.loop import Loop

MODEL = Model(
    name="vit_tiny_patch16_224",
    img_size=12,
    patch_size=4,
    in_chans=1,
    num_classes=3,
    embed_dim=16,
    depth=1,
    num_heads=2,
    class_token=False,
    global_pool="avg",
)
RECIPE = Recipe(epochs=4, batch=8, lr=0.01, optimizer="adamw", interval=3)


def data_folder(folder: Path, sizes: tuple[int, int, int] = (14, 4, 5), channels: int = 1) -> Path:
    """Three classes of noisy 12 x 12 images, so many a class in each split, as tar files with checksums."""
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for split, size in zip(("train", "validation", "test"), sizes, strict=True):
        with tarfile.open(folder / f"{split}.tar", "w") as tar:
            for label in range(3):
                for number in range(size):
                    pixels = generator.integers(0, 120, (12, 12, channels), dtype=np.uint8)
                    pixels[4 * label : 4 * label + 4] += 120
                    buffer = io.BytesIO()
                    Image.fromarray(pixels.squeeze()).save(buffer, "PNG")
                    member = tarfile.TarInfo(f"{label}/{number:03d}.png")
                    member.size = len(buffer.getvalue())
                    tar.addfile(member, io.BytesIO(buffer.getvalue()))
    splits = ("train", "validation", "test")
    (folder / CHECKSUMS).write_text("".join(f"{sha256(folder / f'{s}.tar')}  {s}.tar\n" for s in splits))
    return folder


def data(folder: Path) -> Data:
    return Data(data_folder(folder), channels=1, size=12)


def a_run(method: str = "svite", density: float = 0.5, seed: int = 0, **recipe: object) -> Run:
    return Run(
        method=method,
        density=1.0 if method == "dense" else density,
        seed=seed,
        model=MODEL,
        recipe=RECIPE.model_copy(update=recipe),
    )


def loop_of(run: Run, data: Data, start: Path | None = None, shard: bool = False) -> Loop:
    """The run's state before its first step."""
    return Loop(run, InMemory(data, run.recipe, run.seed), start, shard)


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder and what is in it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
