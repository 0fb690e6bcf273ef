"""Images in shards of WebDataset, on a disk or in object storage, read one shard after another.

A shard is a tar file in which the files of a sample follow each other and share their name up to the first dot:
`key.jpg` with `key.cls`, or `key.json` that has a `label`. It is read in place by offset and nothing is extracted, so
that links and names such as `../x` do no harm; members that are not plain files are passed over.
"""

import hashlib
import json
import re
import tarfile
from bisect import bisect_right
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache, partial
from io import BytesIO
from itertools import accumulate, groupby
from pathlib import Path
from threading import Thread
from typing import BinaryIO, NamedTuple

import fsspec
import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor

from svite.data.archives import refuse_endless
from svite.data.cache import Cache, Unavailable, default_folder, is_local
from svite.data.fingerprint import of_shards
from svite.data.pixels import FORMATS
from svite.data.stored import Stored
from svite.io.files import write
from svite.params.recipe import Images
from svite.sparsity.scoring import seeded

PARTS = re.compile(r"((?:.*/)?[^./]+)\.([^/]*)")  # as WebDataset parts a name into the sample's key and what is of it
PICTURES = ("jpg", "jpeg", "png", "webp")
MOST = 1_000_000  # shards of a pattern
CLASSES = 2**31  # more than anybody has
AHEAD = 2  # shards that are fetched while another is read


class Sample(NamedTuple):
    """Where in its shard a sample's image is, and its class."""

    key: str
    label: int
    offset: int
    size: int


def samples_of(file: BinaryIO) -> list[Sample]:
    """What a shard holds, from the headers of the tar file.

    Raises ValueError or TarError for a file that is no whole, plain tar file, and for a sample without image or class.
    """
    with tarfile.open(fileobj=file, mode="r:") as tar:
        plain = [(PARTS.fullmatch(member.name), member) for member in tar if member.isreg() and not member.issparse()]
        refuse_endless(tar)
    named = [(match[1], match[2].lower(), member) for match, member in plain if match]
    return [_sample(file, key, {part: member for _, part, member in group}) for key, group in groupby(named, _key)]


def _key(named: tuple[str, str, tarfile.TarInfo]) -> str:
    return named[0]


def _sample(file: BinaryIO, key: str, parts: dict[str, tarfile.TarInfo]) -> Sample:
    picture = next((parts[kind] for kind in PICTURES if kind in parts), None)
    if picture is None:
        raise ValueError(f"sample '{key}' has no image ({', '.join(PICTURES)})")
    said = next((parts[kind] for kind in ("cls", "json") if kind in parts), None)
    try:
        file.seek(said.offset_data)
        content = json.loads(file.read(said.size))
        label = content["label"] if isinstance(content, dict) else content
        if isinstance(label, bool) or float(label) != int(label) or abs(int(label)) > CLASSES:
            raise ValueError(label)
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError, RecursionError):
        raise ValueError(f"sample '{key}' has no class: no whole number in .cls, none as label in .json") from None
    return Sample(key, int(label), picture.offset_data, picture.size)


def index(url: str, cache: Cache) -> list[Sample]:
    """What the shard at `url` holds, remembered in the cache folder.

    Raises Unavailable.
    """
    path = Path(url)
    seen = path.stat() if path.exists() else None
    return _index(url, f"{path.resolve()} {seen.st_size} {seen.st_mtime_ns} {seen.st_ino}" if seen else url, cache)


@lru_cache(maxsize=8)
def _index(url: str, version: str, cache: Cache) -> list[Sample]:
    key = hashlib.sha256(version.encode()).hexdigest()
    stored = cache.folder / "index" / f"{key[:32]}.json"
    with suppress(OSError, ValueError, TypeError, RecursionError):  # what is damaged is made again
        return [Sample(*each) for each in json.loads(stored.read_text())]
    with cache.open(url) as file:
        try:
            found = samples_of(file)
        except (tarfile.TarError, ValueError) as error:
            raise Unavailable(f"{url} is not a shard that can be read: {error}.") from None
    write(stored, json.dumps(found))
    return found


class Reader:
    """Reads the images of shards; a place is the number of a shard, and that of the sample in it."""

    def __init__(self, urls: Sequence[str], sizes: Sequence[int], cache: Cache) -> None:
        self.urls, self.sizes, self.cache = urls, sizes, cache

    def sample(self, place: tuple[int, int]) -> Sample:
        """Raises Unavailable where the shard has another number of samples than was said."""
        shard, number = place
        found = index(self.urls[shard], self.cache)
        if len(found) != self.sizes[shard]:
            raise Unavailable(f"{self.urls[shard]} has {len(found)} samples, where {self.sizes[shard]} were announced.")
        return found[number]

    def __call__(self, place: tuple[int, int]) -> tuple[Image.Image, int]:
        """An image and its class. Raises Unavailable."""
        sample = self.sample(place)
        with self.cache.open(self.urls[place[0]]) as file:
            file.seek(sample.offset)
            return Image.open(BytesIO(file.read(sample.size)), formats=FORMATS), sample.label


class Places(Sequence):
    """The places of all samples, shard by shard, without a list of them."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self.ends = [*accumulate(sizes)]

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, number: int) -> tuple[int, int]:
        shard = bisect_right(self.ends, number)
        return shard, number - (self.ends[shard - 1] if shard else 0)


class Shards(Stored):
    """The samples of all shards of a split, shard by shard.

    Raises ValueError for a URL that is a command, FileNotFoundError for shards that are missing, Unavailable for those
    that can't be fetched.
    """

    read: Reader

    def __init__(self, images: Images, split: str) -> None:
        root = location(images.root)
        cache = Cache(Path(images.cache or default_folder()), int(images.cache_gigabytes * 1e9))
        known = info(root)
        names = known[split] if split in known else expand(location(split))
        urls = [f"{root}/{name}" for name in names]
        missing = next((url for url in urls if is_local(url) and not Path(url).is_file()), None)
        if missing or not urls:
            raise FileNotFoundError(f"The shard {missing or f'{root}/{split}'} is missing, or is no file.")
        said = {name: size for sizes in known.values() for name, size in sizes.items()}
        sizes = [said[name] for name in names] if said.keys() >= set(names) else sizes_of(urls, cache)
        stored = [Path(url) if is_local(url) else None for url in urls]
        super().__init__(Places(sizes), Reader(urls, sizes, cache), None, of_shards(names, sizes, stored))
        self.ends, self.window = torch.tensor(self.places.ends), AHEAD * max(sizes) + 1
        self.coming: dict[str, Thread] = {}

    def name(self, index: int) -> str:
        """The shard, and the sample's key in it."""
        place = self.places[index]
        return f"{self.read.urls[place[0]]}: {self.read.sample(place).key}"

    def order(self, chosen: Int[Tensor, " image"], seed: int, epoch: int) -> Int[Tensor, " image"]:
        """Shards in an order of the epoch's own, and each one's chosen samples in theirs."""
        shuffled = super().order(chosen, seed, epoch)
        turn = torch.randperm(len(self.ends), generator=seeded(seed, epoch, "shards"))
        return shuffled[turn[self._shard_of(shuffled)].argsort(stable=True)]

    def _shard_of(self, indices: Int[Tensor, " image"]) -> Int[Tensor, " image"]:
        return torch.bucketize(indices, self.ends, right=True)

    def expect(self, coming: Int[Tensor, " image"]) -> None:
        """Fetch the next shards in the background, where they are not yet here."""
        soon = self._shard_of(coming[: self.window]).unique_consecutive()[: AHEAD + 1].tolist()
        urls = [url for url in (self.read.urls[shard] for shard in soon) if not is_local(url)]
        self.coming = {url: self.coming.get(url) or self._fetching(url) for url in urls}

    def _fetching(self, url: str) -> Thread:
        def fetch() -> None:
            with suppress(Unavailable):  # whoever needs the shard says so
                self.read.cache.fetch(url)

        thread = Thread(target=fetch, daemon=True)
        thread.start()
        return thread


def location(url: str) -> str:
    """A path of this machine as it is, and a URL that fsspec knows.

    Raises ValueError for others: `pipe:` would be a command to run.
    """
    scheme = re.match(r"([A-Za-z][\w+.-]*):", url)
    if scheme and scheme[1] not in fsspec.available_protocols():
        raise ValueError(
            f"'{url}' is refused: shards are files on a disk or in storage that fsspec knows (s3://, gs://, https://); "
            f"'{scheme[1]}:' is neither, and no command is run."
        )
    return re.sub(r"^(file|local)://", "", url).rstrip("/")


def expand(pattern: str) -> list[str]:
    """Names from a pattern with braces.

    Raises ValueError where it stands for more than anybody has.

    >>> expand("train-{08..10}.tar"), expand("{a,b}{1..2}")
    (['train-08.tar', 'train-09.tar', 'train-10.tar'], ['a1', 'a2', 'b1', 'b2'])
    """
    braces = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if not braces:
        return [pattern]
    first, last, listed = braces.groups()
    rest = expand(pattern[braces.end() :])
    many = len(listed.split(",")) if listed else int(last) - int(first) + 1
    if many * len(rest) > MOST:
        raise ValueError(f"'{pattern}' stands for {many * len(rest):,} shards; svite reads up to {MOST:,}.")
    inner = listed.split(",") if listed else [f"{n:0{len(first)}}" for n in range(int(first), int(last) + 1)]
    return [pattern[: braces.start()] + each + end for each in inner for end in rest]


def info(root: str) -> dict[str, dict[str, int]]:
    """The samples of each shard of each split, as timm's `_info.json` or `info.json` tells; nothing without one."""
    system, path = fsspec.url_to_fs(root)
    for name in ("_info.json", "info.json"):
        with suppress(FileNotFoundError, PermissionError):  # the latter of a bucket that does not tell what is in it
            splits = json.loads(system.cat_file(f"{path}/{name}")).get("splits", {})
            return {split: dict(zip(i["filenames"], i["shard_lengths"], strict=True)) for split, i in splits.items()}
    return {}


def sizes_of(urls: Sequence[str], cache: Cache) -> list[int]:
    """The samples of each shard, by looking into each; those looked into before are remembered.

    Raises Unavailable.
    """
    sizes = []
    with ThreadPoolExecutor(AHEAD) as pool:
        for found in pool.map(partial(index, cache=cache), urls):
            sizes.append(len(found))
            print(f"Counting samples: {len(sizes)} of {len(urls)} shards", end="\r", flush=True)
    print(f"{sum(sizes)} samples in {len(urls)} shards" + " " * 20)
    return sizes
