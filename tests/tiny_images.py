"""Tiny sets of images in files, for the tests of what reads them."""

import io
import json
from pathlib import Path

import numpy as np
import webdataset
from PIL import Image
from torch import Tensor

from svite.data.loaded import Loaded
from svite.data.source import Batch, Share
from svite.params.recipe import Images, Recipe, Views

CONFIG = {
    "input_size": (3, 12, 12),
    "mean": (0.5, 0.4, 0.3),
    "std": (0.2, 0.3, 0.4),
    "interpolation": "bicubic",
    "crop_pct": 1.0,
    "crop_mode": "center",
}
CLASSES = ("ant", "bee", "cat")
VIEWS = Views(scale=(0.5, 1.0))


def pictures(count: int, seed: int = 0, side: int = 14) -> list[tuple[bytes, int]]:
    """So many noisy PNG images of each class, class by class."""
    generator = np.random.default_rng(seed)
    made = []
    for label in range(len(CLASSES)):
        for _ in range(count):
            buffer = io.BytesIO()
            Image.fromarray(generator.integers(0, 255, (side, side, 3), dtype=np.uint8)).save(buffer, "PNG")
            made.append((buffer.getvalue(), label))
    return made


SPLITS = {"train": pictures(8), "validation": pictures(3, seed=1)}


def class_folders(root: Path) -> Path:
    """Folders `train` and `validation`, each with a folder a class."""
    for split, found in SPLITS.items():
        for number, (content, label) in enumerate(found):
            path = root / split / CLASSES[label] / f"{number:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return root


def shards(root: Path, per_shard: int = 6) -> Path:
    """Shards `train-00.tar` and so on, as WebDataset writes them; classes alternate."""
    root.mkdir(parents=True, exist_ok=True)
    for split, found in SPLITS.items():
        mixed = found if split == "validation" else [found[i] for i in np.random.default_rng(2).permutation(len(found))]
        for shard in range(0, len(mixed), per_shard):
            with webdataset.TarWriter(str(root / f"{split}-{shard // per_shard:02d}.tar")) as writer:
                for number, (content, label) in enumerate(mixed[shard : shard + per_shard], shard):
                    said = {"cls": label} if number % 2 else {"json": {"label": label, "width": 14}}
                    writer.write({"__key__": f"{split}/{number:03d}", "png": content} | said)
    return root


def write_info(root: Path, **sizes: dict[str, int]) -> None:
    """timm's `_info.json`."""
    splits = {
        split: {"name": split, "num_samples": sum(n.values()), "filenames": [*n], "shard_lengths": [*n.values()]}
        for split, n in sizes.items()
    }
    (root / "_info.json").write_text(json.dumps({"splits": splits}))


def loaded(stored: Images, seed: int = 0, config: dict = CONFIG, **recipe: object) -> Loaded:
    return Loaded(stored, Recipe(**{"batch": 4, "views": VIEWS, **recipe}), seed, config)


def epoch_of(source: Loaded, epoch: int = 0, first: int = 0, share: Share = Share()) -> list[Batch]:  # noqa: B008
    """All batches of an epoch, copied out of the memory that workers share."""
    return [(views.clone(), labels.clone()) for views, labels in source.batches(epoch, first, share)]


def same(first: list[tuple[Tensor, ...]], second: list[tuple[Tensor, ...]]) -> bool:
    """Bit for bit."""
    return len(first) == len(second) and all(
        bool((a == b).all()) and a.shape == b.shape
        for one, other in zip(first, second, strict=True)
        for a, b in zip(one, other, strict=True)
    )
