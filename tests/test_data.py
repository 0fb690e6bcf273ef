"""Data: reading, checking, augmenting, and the digits that are bundled."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import RECIPE, data_folder

from svite.data.digits import write_digits
from svite.data.memory import Data, Split, augmented, order, read_images, refuse_damaged
from svite.params.recipe import Recipe
from svite.sparsity.scoring import seeded

REPOSITORY = Path(__file__).parent.parent
STILL = Recipe(rotate=0, zoom=0, shift=0)


@pytest.fixture
def folder(tmp_path) -> Path:
    return data_folder(tmp_path / "data")


def test_a_folder_is_read_in_order_split_by_split(folder):
    data = Data(folder, channels=1, size=12)
    assert [len(data.train), len(data.validation), len(data.test)] == [42, 12, 15]
    assert data.train.labels.tolist() == sorted(data.train.labels.tolist())
    assert data.train.images.shape == (42, 1, 12, 12)
    assert data.train.images.dtype == torch.uint8
    bright = data.train.images.float().mean((1, 3)).view(42, 3, 4).mean(2).argmax(1)
    assert torch.equal(bright, data.train.labels)


def test_the_test_split_is_read_only_when_asked_for(folder, monkeypatch):
    data, seen = Data(folder, channels=1, size=12), []
    reading = Data._read
    monkeypatch.setattr(Data, "_read", lambda self, split: seen.append(split) or reading(self, split))
    assert data.moments
    assert data.validation
    assert seen == ["train", "validation"]


def test_without_validation_a_tenth_of_each_class_is_held_out(tmp_path):
    folder = data_folder(tmp_path / "data", (40, 1, 1))
    whole = Data(folder, channels=1, size=12).train.images
    (folder / "validation.tar").unlink()
    (folder / "SHA256SUMS").unlink()
    first, second = (Data(folder, channels=1, size=12) for _ in range(2))
    assert first.validation.labels.bincount().tolist() == [4, 4, 4]
    assert len(first.train) == 108
    assert torch.equal(first.validation.images, second.validation.images)
    both = torch.cat([first.train.images, first.validation.images]).flatten(1)
    assert sorted(map(tuple, both.tolist())) == sorted(map(tuple, whole.flatten(1).tolist()))


def class_folders(path: Path, **images: int) -> Path:
    """So many images of each class."""
    for label, count in images.items():
        (path / label).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(np.full((12, 12), 200, np.uint8)).save(path / label / f"{number}.png")
    return path.parent


def test_splits_of_other_classes_are_refused(tmp_path):
    root = class_folders(tmp_path / "train", a=2, b=2, c=2)
    class_folders(tmp_path / "validation", b=2, c=2)
    class_folders(tmp_path / "test", a=1, b=1, c=1, d=1)
    found = Data(root, size=12)
    assert found.classes == 3
    with pytest.raises(ValueError, match=r"^'validation' and 'train' of .* differ in their classes: a, for one\.$"):
        _ = found.validation
    with pytest.raises(ValueError, match=r"^'test' and 'train' of .* differ in their classes: d, for one\.$"):
        _ = found.test


def test_too_few_images_to_hold_any_out_are_refused(tmp_path):
    root = class_folders(tmp_path / "train", a=9, b=9)
    with pytest.raises(ValueError, match="has no 'validation', and no class of 'train' has ten images"):
        _ = Data(root, size=12).train


def test_a_folder_of_class_folders_is_resized_and_turned_grey(tmp_path):
    for label in "ab":
        (tmp_path / "train" / label).mkdir(parents=True)
        Image.fromarray(np.full((20, 30, 3), 200, np.uint8)).save(tmp_path / "train" / label / "one.png")
    for channels in (1, 3):
        split, found = read_images(tmp_path / "train", channels, 12)
        assert found.classes == ["a", "b"]
        assert split.images.shape == (2, channels, 12, 12)
        assert (split.images == 200).all()
        assert split.labels.tolist() == [0, 1]


def test_moments_make_the_training_images_mean_zero_deviation_one(folder):
    data = Data(folder, channels=1, size=12)
    normalised = data.normalised(data.train.images)
    assert normalised.mean().item() == pytest.approx(0, abs=1e-5)
    assert normalised.std().item() == pytest.approx(1, abs=1e-5)


def test_the_first_images_are_taken_evenly(folder):
    train = Data(folder, channels=1, size=12).train
    assert train.first(6).labels.bincount().tolist() == [2, 2, 2]
    assert len(train.first(None)) == len(train.first(1000)) == 42


# Damage


def test_missing_and_damaged_data_are_told_apart_in_one_sentence(folder):
    refuse_damaged(folder)
    with pytest.raises(FileNotFoundError, match=r"The data folder '.*nowhere' is missing; .*make data"):
        Data(folder / "nowhere")
    content = (folder / "train.tar").read_bytes()
    (folder / "train.tar").write_bytes(content[:2000] + b"x" + content[2001:])
    with pytest.raises(ValueError, match=r"train\.tar is damaged .*dvc checkout --force"):
        Data(folder)
    (folder / "train.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"train\.tar is missing"):
        Data(folder)
    sums = (folder / "SHA256SUMS").read_bytes()
    for line in (b"\n", b"junk\n", b"\xff\xfe\n"):
        (folder / "SHA256SUMS").write_bytes(line + sums)
        with pytest.raises(ValueError, match=r"SHA256SUMS is damaged: b'.*' is no checksum and name of a file"):
            Data(folder)
    (folder / "two words.txt").write_text("x")
    digest = hashlib.sha256(b"x").hexdigest()
    (folder / "SHA256SUMS").write_text(f"{digest}  two words.txt\n{digest} *two words.txt\n")
    refuse_damaged(folder)
    (folder / "SHA256SUMS").unlink()
    with pytest.raises(FileNotFoundError, match=r"no 'train\.tar' and no folder 'train'"):
        _ = Data(folder, channels=1, size=12).train


# Order and augmentation


@pytest.mark.parametrize("images", [1, 10, 501])
def test_an_epoch_visits_each_image_once_in_an_order_of_its_own(images):
    orders = [order(images, seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert all(sorted(each.tolist()) == list(range(images)) for each in orders)
    assert torch.equal(order(images, 0, 1), orders[1])
    if images > 1:
        assert len({tuple(each.tolist()) for each in orders}) == 4


def test_augmentation_is_a_function_of_its_generator_and_differs_between_images():
    images = torch.randint(256, (1, 3, 16, 16), dtype=torch.uint8, generator=seeded(0, 0, "test")).repeat(4, 1, 1, 1)
    first, again, later = (augmented(images, RECIPE, seeded(0, step, "augmentation")) for step in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, later)
    assert not torch.equal(first[0], first[1])
    assert first.dtype == torch.uint8
    assert first.shape == images.shape


def test_no_augmentation_leaves_images_as_they_are():
    images = torch.randint(256, (5, 1, 28, 28), dtype=torch.uint8, generator=seeded(0, 0, "test"))
    assert torch.equal(augmented(images, STILL, seeded(0, 0, "augmentation")), images)


def test_a_shift_is_in_pixels_and_black_comes_in_from_outside():
    images = torch.full((200, 1, 16, 16), 255, dtype=torch.uint8)
    shifted = augmented(images, STILL.model_copy(update={"shift": 3.0}), seeded(0, 0, "augmentation"))
    dark = ((shifted < 128).float().mean((1, 2)) * 1.0).gt(0.5).sum(1)  # columns that are mostly black
    assert 2 <= int(dark.max()) <= 3
    assert (shifted[:, :, 4:12, 4:12] == 255).all()


# The bundled digits


def test_the_bundled_digits_are_written_again_byte_for_byte(tmp_path):
    write_digits(tmp_path)
    for name in ("SHA256SUMS", "README.md"):
        assert (tmp_path / name).read_text() == (REPOSITORY / "data" / name).read_text()
    refuse_damaged(tmp_path)
    for split in ("train", "validation", "test"):
        assert (tmp_path / f"{split}.tar").read_bytes() == (REPOSITORY / "data" / f"{split}.tar").read_bytes()


def test_the_bundled_digits_are_all_of_the_sample_and_no_image_is_in_two_splits():
    data = Data(REPOSITORY / "data")
    splits = {"train": (data.train, 350), "validation": (data.validation, 50), "test": (data.test, 100)}
    seen: set[bytes] = set()
    total = 0
    for split, each in splits.values():
        assert split.labels.bincount().tolist() == [each] * 10
        hashes = {hashlib.sha256(image.numpy().tobytes()).digest() for image in split.images}
        assert not hashes & seen
        seen |= hashes
        total += len(split)
    assert total == 5000


CIFAR = REPOSITORY.parent / "shared" / "data" / "cifar10"


@pytest.mark.skipif(not CIFAR.is_dir(), reason="CIFAR-10 is not part of the repository")
def test_cifar10_is_read_in_colour(tmp_path):
    shutil.copy(CIFAR / "test.tar", tmp_path / "train.tar")  # the smaller file, as training images
    data = Data(tmp_path, channels=3, size=32)
    assert isinstance(data.train, Split)
    assert data.train.images.shape == (9000, 3, 32, 32)
    assert data.validation.labels.bincount().tolist() == [100] * 10
    assert data.moments[0].view(-1).tolist() == pytest.approx([0.494, 0.485, 0.450], abs=0.01)
