"""Images in files, one by one: class folders, tar files, torchvision's data sets, Hugging Face's."""

from collections.abc import Iterable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from jaxtyping import Int
from PIL import Image
from timm.data import create_dataset
from timm.data.dataset_factory import _search_split
from torch import Tensor

from svite.data.fingerprint import Fingerprint, of_files, of_rows
from svite.data.found import Slice, find, opened, split_of
from svite.data.memory import order
from svite.data.pixels import FORMATS
from svite.data.views import Read
from svite.params.recipe import Images

FOLDERS = ("torch/image_folder", "torch/folder")  # of torchvision, whose reader would cut 16 bits off at 255


class Stored:
    """The images of a split, in a fixed order. `read` is what a worker gets; where each image is stays here.

    `places` are what `read` takes, `classes` the names of the classes, if there are names; `remarks` what a
    person would not expect to find there, or not to.
    """

    def __init__(
        self,
        places: Sequence[Any],
        read: Read,
        classes: Iterable[str] | None,
        fingerprint: Fingerprint,
        *,
        title: str = "",
        remarks: Sequence[str] = (),
    ) -> None:
        self.places, self.read, self.title, self.remarks = places, read, title, remarks
        self.classes, self.fingerprint = None if classes is None else [*classes], fingerprint

    def __len__(self) -> int:
        return len(self.places)

    def name(self, index: int) -> str:
        """What to call an image before a person."""
        place = self.places[index]
        return f"image {place} of {self.title}" if isinstance(place, int) else str(place)

    def order(self, chosen: Int[Tensor, " image"], seed: int, epoch: int) -> Int[Tensor, " image"]:
        """The order in which an epoch visits the chosen images."""
        return chosen[order(len(chosen), seed, epoch)]

    def expect(self, coming: Int[Tensor, " image"]) -> None:
        """Told which images are read soon."""


def read_slice(place: Slice) -> tuple[Image.Image, int]:
    """An image and its class."""
    return opened(place), place.label


def files(images: Images, split: str) -> Stored:
    """A folder of class folders or a tar file of them, as timm reads them.

    Raises FileNotFoundError where neither is there; ValueError or OSError for what `find` refuses.
    """
    path = split_of(Path(images.root), split)
    if path is None:
        raise FileNotFoundError(f"{images.root} has no folder '{split}' and no '{split}.tar'.")
    found = find(path)
    return Stored(found.images, read_slice, found.classes, of_files(found, path), remarks=found.remarks)


def torchvision(images: Images, split: str) -> Stored:
    """One of torchvision's data sets, which nobody downloads here.

    Raises FileNotFoundError where a folder of splits has no such split.
    """
    if images.name in FOLDERS:
        found = Path(_search_split(images.root, split))  # `val` for `validation`, say; the root itself for nothing
        return files(images, split if found == Path(images.root) else found.name)
    found = create_dataset(images.name, root=images.root, split=split)
    classes = getattr(found, "classes", None)
    return Stored(range(len(found)), found.__getitem__, classes, of_rows(found, classes), title=images.name)


class Rows:
    """Reads the rows of a Hugging Face data set by the names of two columns."""

    def __init__(self, rows: Any, image: str, label: str) -> None:
        self.rows, self.image, self.label = rows, image, label

    def __call__(self, index: int) -> tuple[Image.Image, int]:
        """An image and its class."""
        row = self.rows[index]
        stored = row[self.image]
        image = BytesIO(stored["bytes"]) if stored["bytes"] else stored["path"]
        return Image.open(image, formats=FORMATS), row[self.label]


def hugging_face(images: Images, split: str) -> Stored:
    """A data set of the hub, of a local folder, or one that `save_to_disk` wrote. No code of the data set is run.

    Raises ValueError where it has no column of images or none of classes, or several.
    """
    import datasets

    name = images.name.partition("/")[2]
    if name.startswith((".", "/")) and not Path(name).is_dir():
        raise FileNotFoundError(f"There is no folder {name}, which data.name asks for.")
    if (Path(name) / "dataset_dict.json").exists():
        rows = datasets.load_from_disk(name)[split]
    else:
        rows = datasets.load_dataset(name, split=split, cache_dir=images.root)
    kinds = {"image": datasets.Image, "label": datasets.ClassLabel}
    image, label = (_column(rows.features, preferred, kind) for preferred, kind in kinds.items())
    names = getattr(rows.features[label], "names", None)
    plain = rows.select_columns([image, label]).cast_column(image, datasets.Image(decode=False))
    return Stored(range(len(rows)), Rows(plain, image, label), names, of_rows(rows, names), title=images.name)


def _column(features: dict[str, Any], preferred: str, kind: type) -> str:
    """The column of that name, or the only one of that kind."""
    found = [preferred] if preferred in features else [name for name, each in features.items() if type(each) is kind]
    if len(found) != 1:
        raise ValueError(f"one column '{preferred}' is wanted; there are {', '.join(features)}")
    return found[0]
