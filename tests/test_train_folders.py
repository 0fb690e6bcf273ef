"""Images in folders: every kind that is read, what is left out and told, and what names itself where it is broken."""

import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from tiny_images import CLASSES, CONFIG, class_folders, epoch_of, loaded, pictures, same, shards

from svite.data.found import find
from svite.data.memory import Data, read_images
from svite.data.pixels import eight_bits
from svite.data.source import InMemory, Share
from svite.params.recipe import Images, Recipe
from svite.train.evaluate import validated

ROOT = Path(__file__).parent.parent
PIXELS = np.random.default_rng(0).integers(0, 255, (14, 14, 3), dtype=np.uint8)


def two_classes(root: Path) -> Path:
    for label, value in (("a", 60), ("b", 200)):
        (root / label).mkdir(parents=True)
        Image.fromarray(np.full((8, 8), value, np.uint8)).save(root / label / "one.png")
    return root


def packed(root: Path) -> Path:
    with tarfile.open(f"{root}.tar", "w") as tar:
        tar.add(root, ".")
    return Path(f"{root}.tar")


@pytest.mark.parametrize("ending", [".webp", ".tif", ".tiff", ".bmp", ".gif", ".jfif", ".PNG", ".Jpg"])
def test_every_ending_of_a_format_that_is_read_is_found(ending, tmp_path):
    root = two_classes(tmp_path)
    Image.fromarray(PIXELS).save(root / "b" / f"two{ending}")
    found = find(root)
    assert [Path(image.path).name for image in found.images] == ["one.png", "one.png", f"two{ending}"]
    assert found.remarks == []
    assert len(read_images(root, 3, 14)[0]) == 3


def test_what_is_no_image_is_counted_and_told_by_its_kind(tmp_path):
    root = two_classes(tmp_path)
    for number in range(3):
        (root / "a" / f"{number}.heic").touch()
    (root / "b" / "notes.txt").touch()
    (root / "b" / ".hidden").touch()
    os.mkfifo(root / "b" / "pipe.png")
    (root / "a" / "gone.png").symlink_to(root / "nowhere.png")
    (root / "a" / "folder.png").mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(root / "b" / "socket.png"))
        found = find(root)
    assert len(found.images) == 2
    said, empty = found.remarks
    assert said.startswith("8 files in 2 folders left out (.heic, ")
    assert all(kind in said for kind in (".txt", "no ending", "pipes", "sockets", "links to nothing"))
    assert empty == "1 folder without images (a/folder.png)"


def test_tar_members_that_are_no_images_are_told_too(tmp_path):
    root = two_classes(tmp_path / "train")
    (root / "a" / "notes.txt").touch()
    found = find(packed(root))
    assert found.remarks == ["1 file in 1 folder left out (.txt)"]
    assert len(found.images) == 2


def test_the_source_tells_what_it_found(tmp_path):
    root = class_folders(tmp_path)
    (root / "train" / "ant" / "notes.txt").touch()
    assert loaded(Images(root=str(root), workers=0)).told == [
        "train: 24 images of 3 classes; 1 file in 1 folder left out (.txt)",
        "validation: 9 images of 3 classes",
    ]


def test_one_class_and_images_outside_of_class_folders_are_refused(tmp_path):
    root = two_classes(tmp_path)
    (root / "a" / "one.png").rename(root / "b" / "two.png")
    with pytest.raises(ValueError, match="has images of 1 class, where at least two are wanted, each in a folder"):
        find(root)
    with pytest.raises(ValueError, match="has no images in class folders"):
        find(root / "a")


@pytest.mark.parametrize("folder", [True, False], ids=["folder", "tar"])
def test_an_image_beside_the_class_folders_is_no_class_of_its_own(folder, tmp_path):
    root = two_classes(tmp_path / "train")
    Image.fromarray(PIXELS).save(root / "stray.png")
    with pytest.raises(ValueError, match=r"stray\.png lies outside of the class folders; move it"):
        find(root if folder else packed(root))


def test_a_link_that_leads_back_counts_no_image_twice(tmp_path):
    root = two_classes(tmp_path / "train")
    (root / "a" / "back").symlink_to("..")
    with pytest.raises(ValueError, match=r"a/back is .*/train once more, by a link"):
        find(root)
    (root / "a" / "back").unlink()
    (root / "c").symlink_to("b")
    with pytest.raises(ValueError, match=r"/c is .*/b once more, by a link"):
        find(root)
    (root / "c").unlink()
    two_classes(tmp_path / "elsewhere")
    (root / "c").symlink_to(tmp_path / "elsewhere" / "a")
    assert find(root).classes == ["a", "b", "c"]


@pytest.mark.parametrize("folder", [True, False], ids=["folder", "tar"])
def test_classes_that_are_put_together_and_folders_without_images_are_told(folder, tmp_path):
    root = two_classes(tmp_path / "train")
    for year in ("2020", "2021"):
        for animal in ("ant", "bee"):
            (root / animal / year).mkdir(parents=True)
            Image.fromarray(PIXELS).save(root / animal / year / "one.png")
    (root / "empty").mkdir()
    found = find(root if folder else packed(root))
    assert len(found.classes) == 4
    *empty, several = found.remarks
    assert empty == (["1 folder without images (empty)"] if folder else [])  # a tar file is read for its files
    assert re.fullmatch(r"2 classes have several folders of one name \(.*ant/2020, .*bee/2020\)", several)


ALIKE = """
import sys
from pathlib import Path
import svite
from svite.train.evaluate import validated
from svite.data.found import find
found = find(Path(sys.argv[1]))
print(found.classes, [(image.label, Path(image.name or image.path).as_posix()[-8:]) for image in found.images])
"""


@pytest.mark.parametrize("folder", [True, False], ids=["folder", "tar"])
def test_names_that_timm_takes_for_equal_are_in_one_order_whatever_the_hashes(folder, tmp_path):
    root = tmp_path / "train"
    for label in ("cat", "Cat", "1", "01"):
        (root / label).mkdir(parents=True)
        for name in ("1.png", "01.png"):
            Image.fromarray(PIXELS).save(root / label / name)
    place = str(root if folder else packed(root))
    said = {
        subprocess.run(
            [sys.executable, "-c", ALIKE, place],
            env=os.environ | {"PYTHONHASHSEED": str(seed), "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        ).stdout
        for seed in range(3)
    }
    assert len(said) == 1
    assert said.pop().startswith("['01', '1', 'Cat', 'cat'] [(0, ")


@pytest.mark.parametrize("folder", [True, False], ids=["folder", "tar"])
def test_what_is_hidden_is_no_image_and_no_class(folder, tmp_path):
    root = two_classes(tmp_path / ".hidden" / "train")
    for place in ("__MACOSX/a/._1.png", ".ipynb_checkpoints/1.png", "a/._1.png"):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(PIXELS).save(root / place)
    found = find(root if folder else packed(root))
    assert (found.classes, len(found.images)) == (["a", "b"], 2)
    assert found.remarks[0] == "3 files in 3 folders left out (hidden)"


def test_links_in_a_tar_file_and_images_too_deep_in_it_are_not_lost_without_a_word(tmp_path):
    root = two_classes(tmp_path / "train")
    os.link(root / "a" / "one.png", root / "a" / "two.png")
    (root / "b" / "three.png").symlink_to("one.png")
    found = find(packed(root))
    assert len(found.images) == 2
    assert found.remarks == ["2 files in 2 folders left out (links and devices)"]
    for _ in range(2):
        packed(root).rename(root / "inner.tar")
        for label in "ab":
            shutil.rmtree(root / label, ignore_errors=True)
    with pytest.raises(
        ValueError, match=r"inner\.tar/\./inner\.tar lies too deep for its images to be found; unpack .*/inner\.tar\.$"
    ):
        find(packed(root))


def test_a_link_to_itself_is_a_link_to_nothing(tmp_path):
    root = two_classes(tmp_path)
    (root / "a" / "x.png").symlink_to("x.png")
    assert find(root).remarks == ["1 file in 1 folder left out (links to nothing)"]


def test_torchvisions_folders_are_read_as_any_others(tmp_path):
    for split in ("train", "validation"):
        root = two_classes(tmp_path / split)
        deep(2000).save(root / "a" / "deep.png")
    named = loaded(Images(name="torch/image_folder", root=str(tmp_path), workers=0), batch=3)
    plain = loaded(Images(root=str(tmp_path), workers=0), batch=3)
    assert named.fingerprint == plain.fingerprint
    assert same(epoch_of(named), epoch_of(plain))
    (tmp_path / "validation").rename(tmp_path / "val")  # as timm calls it too
    assert loaded(Images(name="torch/image_folder", root=str(tmp_path), workers=0)).fingerprint == plain.fingerprint


def test_where_no_validation_image_can_be_read_that_is_said(tmp_path):
    root = class_folders(tmp_path)
    for path in (root / "validation").rglob("*.png"):
        path.write_bytes(b"no image")
    source = loaded(Images(root=str(root), workers=0, unreadable="skip"))
    with pytest.raises(ValueError, match="Nothing can be validated: there is no image, or none that can be read"):
        validated(torch.nn.Identity(), source.validation(Share()), Accelerator(cpu=True))


def test_a_folder_and_a_tar_file_of_one_name_are_refused(tmp_path):
    for split in ("train", "validation"):
        packed(two_classes(tmp_path / split))
    (tmp_path / "validation.tar").unlink()
    said = "has a folder 'train' and a 'train.tar'; take one of them away"
    with pytest.raises(ValueError, match=said):
        loaded(Images(root=str(tmp_path), workers=0))
    with pytest.raises(ValueError, match=said):
        Data(tmp_path, 3, 14).train  # noqa: B018


def test_a_validation_split_that_is_made_is_told(tmp_path):
    root = two_classes(tmp_path / "train")
    for number in range(10):
        Image.fromarray(PIXELS).save(root / "a" / f"{number}.png")
    assert InMemory(Data(tmp_path, 3, 14), Recipe(), 0).told == [
        "train: 11 images of 2 classes",
        "validation: 1 images of 2 classes; a tenth of each class of 'train'",
    ]


# Pixels


def deep(value: int) -> Image.Image:
    return Image.fromarray(np.full((8, 8), value, np.uint16))


@pytest.mark.parametrize(("value", "grey"), [(0, 0), (257, 1), (12_850, 50), (32_896, 128), (65_535, 255)])
@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_sixteen_bits_are_scaled_and_not_cut_off(value, grey, ending, tmp_path):
    root = two_classes(tmp_path)
    deep(value).save(root / "a" / f"first{ending}")
    split, _ = read_images(root, 1, 8)
    with Image.open(root / "a" / f"first{ending}") as stored:
        from_file = np.asarray(eight_bits(stored, 1))
    assert split.images[0].unique().tolist() == [grey]
    assert np.unique(from_file).tolist() == [grey]
    assert eight_bits(deep(value), 3).getpixel((0, 0)) == (grey, grey, grey)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"])
@pytest.mark.parametrize("channels", [1, 3])
def test_other_modes_are_what_pillow_makes_of_them(mode, channels):
    image = Image.fromarray(PIXELS).convert(mode)
    expected = image.convert({1: "L", 3: "RGB"}[channels])
    assert np.array_equal(np.asarray(eight_bits(image, channels)), np.asarray(expected))


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pixels_of_32_bits_are_refused(mode):
    with pytest.raises(ValueError, match=rf"32 bits \(mode {mode}\), and nothing says which is white"):
        eight_bits(Image.fromarray(PIXELS).convert("L").convert(mode), 1)


# Images that can't be read


def enormous(path: Path) -> None:
    """A PNG of 30,000 x 30,000 pixels in a few bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0)
    chunks = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"")), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


BROKEN = {
    "empty": (lambda path: path.touch(), "cannot identify"),
    "garbage": (lambda path: path.write_bytes(b"no image"), "cannot identify"),
    "cut": (lambda path: path.write_bytes(pictures(1, side=64)[0][0][:2000]), ""),
    "enormous": (enormous, "decompression bomb"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_image_names_its_file_in_memory_and_from_files(kind, tmp_path):
    root = class_folders(tmp_path)
    broken = root / "train" / "bee" / "08.png"
    broken.unlink()
    BROKEN[kind][0](broken)
    for ask in (
        lambda: read_images(root / "train", 3, 14),
        lambda: epoch_of(loaded(Images(root=str(root), workers=0))),
    ):
        with pytest.raises(ValueError, match=rf"bee/08\.png can't be read as an image \(.*{BROKEN[kind][1]}") as caught:
            ask()
        assert "\n" not in str(caught.value)


def test_skipped_images_are_named_once(tmp_path, capsys):
    root = class_folders(tmp_path)
    (root / "train" / "bee" / "08.png").write_bytes(b"no image")
    source = loaded(Images(root=str(root), workers=0, unreadable="skip"))
    for epoch in range(2):
        epoch_of(source, epoch)
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("1 images could not be read and were left out in epoch 1: ")
    assert "bee/08.png (cannot identify image file)" in first
    assert second == "1 images could not be read and were left out in epoch 2."


@pytest.mark.parametrize("place", ["train", "validation"])
def test_a_label_that_the_model_does_not_tell_apart_names_its_sample(place, tmp_path):
    splits = {"train": "train-{00..03}.tar", "validation": "validation-{00..01}.tar"}
    asked = Images(name="shards", root=str(shards(tmp_path)), workers=0, **splits)
    source = loaded(asked, config=CONFIG | {"classes": len(CLASSES) - 1})
    with pytest.raises(ValueError, match=r"\.tar: .* is of class 2, counted from 0, and the model tells 2 apart"):
        epoch_of(source) if place == "train" else list(source.validation(Share()))
    fine = loaded(asked, config=CONFIG | {"classes": len(CLASSES)})
    assert torch.cat([labels for _, labels in epoch_of(fine)]).max() == 2
