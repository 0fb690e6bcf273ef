"""Tar files that are cut short, damaged or go on behind their end are errors that name them, wherever they are read."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_images import CLASSES, class_folders, loaded, pictures, shards

from svite.data.archives import files_of
from svite.data.found import find
from svite.data.memory import read_images
from svite.data.shards import expand, samples_of
from svite.params.recipe import Images

BLOCK = tarfile.BLOCKSIZE


def archive(path: Path, count: int = 10) -> Path:
    with tarfile.open(path, "w") as tar:
        for number, (content, label) in enumerate(pictures(count)):
            member = tarfile.TarInfo(f"{CLASSES[label]}/{number:02d}.png")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def starts(path: Path) -> list[int]:
    with tarfile.open(path) as tar:
        return [member.offset for member in tar]


DAMAGES: dict[str, tuple[Callable[[bytes, list[int]], bytes], str]] = {
    "between members": (lambda whole, at: whole[: at[15]], "it is cut short, or damaged in its middle"),
    "in a header": (lambda whole, at: whole[: at[15] + 100], "can't be read as a tar file"),
    "in an image": (lambda whole, at: whole[: at[15] + BLOCK + 40], "can't be read as a tar file"),
    "no end": (lambda whole, at: whole.rstrip(b"\0") + bytes(BLOCK), "can't be read as a tar file"),
    "broken header": (
        lambda whole, at: whole[: at[15]] + b"x" * BLOCK + whole[at[15] + BLOCK :],
        "can't be read as a tar file",
    ),
    "two of them": (lambda whole, at: whole + whole, "it goes on behind its end"),
    "garbage": (lambda whole, at: b"no tar" * 500, "can't be read as a tar file"),
    "nothing": (lambda whole, at: b"", "can't be read as a tar file"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_archive_that_is_not_whole_is_refused_in_one_sentence(damage, tmp_path):
    path = archive(tmp_path / "train.tar")
    assert len(files_of(path)) == 30
    change, said = DAMAGES[damage]
    path.write_bytes(change(path.read_bytes(), starts(path)))
    for ask in (lambda: find(path), lambda: read_images(path, 3, 14)):
        with pytest.raises(ValueError, match=r"train\.tar can't be read as a tar file \(.*\)") as caught:
            ask()
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_shard_that_is_not_whole_is_refused_in_one_sentence(damage, tmp_path):
    root = shards(tmp_path / "shards", per_shard=12)
    path = root / "train-01.tar"
    change, _ = DAMAGES[damage]
    path.write_bytes(change(path.read_bytes(), starts(path)))
    asked = Images(
        name="shards",
        root=str(root),
        train="train-{00..01}.tar",
        validation="validation-00.tar",
        cache=str(tmp_path / "cache"),
        workers=0,
    )
    with pytest.raises((ValueError, RuntimeError), match=r"train-01\.tar is not a shard that can be read: ") as caught:
        loaded(asked)
    assert "\n" not in str(caught.value)


def test_a_tar_in_a_tar_is_looked_at_too(tmp_path):
    inner = archive(tmp_path / "inner.tar").read_bytes()
    for content, whole in ((inner, True), (inner[: len(inner) // 2 // BLOCK * BLOCK], False)):
        with tarfile.open(tmp_path / "train.tar", "w") as tar:
            member = tarfile.TarInfo("inner.tar")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        if whole:
            assert len(find(tmp_path / "train.tar").images) == 30
        else:
            with pytest.raises(ValueError, match=r"train\.tar/inner\.tar can't be read as a tar file"):
                find(tmp_path / "train.tar")


def test_a_tar_file_beside_class_folders_is_told_and_takes_nothing_over(tmp_path):
    root = class_folders(tmp_path)
    archive(root / "train" / "more.tar")
    found = find(root / "train")
    assert len(found.images) == 24
    assert found.remarks == ["1 file in 1 folder left out (.tar)"]


def test_an_archive_without_images_and_a_remembered_index_of_another_are_not_believed(tmp_path):
    with tarfile.open(tmp_path / "train.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("a/notes.txt"))
    with pytest.raises(ValueError, match=r"train\.tar has no images"):
        find(tmp_path / "train.tar")
    (tmp_path / "_train_tarinfos.pickle").write_bytes(b"of another archive")
    assert len(find(archive(tmp_path / "train.tar")).images) == 30
    assert (tmp_path / "_train_tarinfos.pickle").read_bytes() == b"of another archive"


def test_a_pattern_that_stands_for_too_many_shards_is_refused_at_once():
    for pattern in ("t-{0..99999999}.tar", "{0..9999}{0..9999}", "{a,b}" * 40):
        with pytest.raises(ValueError, match=r"stands for .* shards; svite reads up to 1,000,000\.$"):
            expand(pattern)
    assert len(expand("{0..999}-{0..99}.tar")) == 100_000


def test_samples_of_reads_a_whole_shard(tmp_path):
    with (shards(tmp_path) / "train-00.tar").open("rb") as file:
        assert len(samples_of(file)) == 6
