"""Images read from files: the same bytes whoever reads them, and nothing left out in silence."""

import gc
import os
import random
import shutil
import signal
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from timm.data.auto_augment import _RAND_INCREASING_TRANSFORMS, _RAND_TRANSFORMS, AugmentOp
from timm.data.distributed_sampler import RepeatAugSampler
from tiny import vit
from tiny_images import CLASSES, CONFIG, SPLITS, class_folders, epoch_of, loaded, same

from svite.data.loaded import Loaded
from svite.data.source import Share, Source
from svite.data.views import config, random_numbers_kept, seed_all
from svite.params.recipe import Images, Views

WORKERS = pytest.mark.xdist_group("workers")


@pytest.fixture
def root(tmp_path) -> Path:
    return class_folders(tmp_path / "data")


def here(root: Path, **arguments: object) -> Images:
    return Images(root=str(root), **{"workers": 0, **arguments})


def views_of(source: Loaded, epoch: int = 0) -> torch.Tensor:
    return torch.cat([views for views, _ in epoch_of(source, epoch)])


def grouped() -> set[psutil.Process]:
    """Processes in a group of their own, which what is sent to the training's misses: those that read images."""
    gc.collect()  # theirs end with what they belong to
    return {each for each in psutil.Process().children(recursive=True) if os.getpgid(each.pid) == each.pid}


@pytest.fixture
def children() -> Callable[[], list[psutil.Process]]:
    """Tells which processes read images; those of other tests may go on beside."""
    others = grouped()
    return lambda: [*grouped() - others]


@WORKERS
def test_the_number_of_workers_changes_no_byte(root):
    alone = loaded(here(root))
    assert isinstance(alone, Source)
    assert len(alone) == 24
    expected = epoch_of(alone)
    assert [tuple(views.shape) for views, _ in expected] == [(4, 3, 12, 12)] * 6
    for workers in (1, 2):
        source = loaded(here(root, workers=workers))
        assert same(epoch_of(source), expected)
        assert same([*source.validation(Share())], [*alone.validation(Share())])


@pytest.mark.parametrize("of", [2, 4])
def test_shares_tile_the_whole_batch(root, of):
    source = loaded(here(root))
    shares = [epoch_of(source, share=Share(rank, of)) for rank in range(of)]
    for number, (views, labels) in enumerate(epoch_of(source)):
        for rank in range(of):
            assert torch.equal(shares[rank][number][0], views[rank::of])
            assert torch.equal(shares[rank][number][1], labels[rank::of])
    held = [labels for rank in range(of) for _, labels in source.validation(Share(rank, of))]
    assert torch.cat(held).bincount().tolist() == [3, 3, 3]


def test_an_epoch_entered_in_the_middle_is_its_tail(root):
    whole = epoch_of(loaded(here(root)), epoch=3)
    assert same(epoch_of(loaded(here(root)), epoch=3, first=4), whole[4:])


@WORKERS
def test_workers_go_on_to_the_next_epoch_and_give_what_new_ones_would(root):
    source = loaded(here(root, workers=1))
    epoch_of(source, 0)
    stream = source.ahead.stream
    list(source.validation(Share()))
    assert same(epoch_of(source, 1), epoch_of(loaded(here(root)), 1))
    assert source.ahead.stream is stream
    assert same(epoch_of(source, 5), epoch_of(loaded(here(root)), 5))
    assert source.ahead.stream is not stream


@WORKERS
def test_workers_end_with_what_they_belong_to_and_before_the_garbage_collector_comes_to_them(root, children):
    source = loaded(here(root, workers=1))
    source.circle = source.batches(0, 0, Share())  # as a loop has it
    next(source.circle)
    ahead = source.ahead
    assert len(children()) == 1
    del source
    assert not children()
    assert ahead.stream is None


def test_orders_and_views_are_of_a_seed_and_an_epoch(root):
    source, other = loaded(here(root)), loaded(here(root), seed=1)
    assert torch.equal(source.epochs.order(0), loaded(here(root)).epochs.order(0))
    assert sorted(source.epochs.order(0).tolist()) == list(range(24))
    for changed in (source.epochs.order(1), other.epochs.order(0)):
        assert not torch.equal(source.epochs.order(0), changed)
    by_image = [
        views_of(each, epoch)[each.epochs.order(epoch).argsort()]
        for each, epoch in ((source, 0), (source, 1), (other, 0))
    ]
    for changed in by_image[1:]:
        assert (by_image[0] != changed).flatten(1).any(1).all()


def test_repeated_views_follow_each_other_and_differ(root):
    source = loaded(here(root), views=Views(repeats=2))
    (views, labels), *others = epoch_of(source)
    assert len(others) == 5  # as many views as without repeats
    assert torch.equal(source.epochs.order(0)[0::2], source.epochs.order(0)[1::2])
    assert torch.equal(labels[0::2], labels[1::2])
    assert (views[0::2] != views[1::2]).flatten(1).any(1).all()


def test_repeats_are_those_of_timm(root, monkeypatch):
    source = loaded(here(root), views=Views(repeats=3))
    timms = RepeatAugSampler(range(24), num_replicas=1, rank=0, num_repeats=3)
    timms.set_epoch(5)
    visited = torch.randperm(24, generator=torch.Generator().manual_seed(5))
    monkeypatch.setattr(source.train, "order", lambda chosen, seed, epoch: visited)
    assert source.epochs.order(0).tolist() == [*timms]


def draw() -> tuple[float, float, float]:
    return random.random(), np.random.rand(), torch.rand(()).item()  # noqa: NPY002


def test_random_numbers_that_are_kept_go_on_where_they_were():
    seed_all(0, 0, 0)
    expected = draw()
    seed_all(0, 0, 0)
    with random_numbers_kept():
        seed_all(0, 0, 1)
        assert not set(draw()) & set(expected)
    assert draw() == expected


@WORKERS
@pytest.mark.parametrize("workers", [0, 1])
def test_the_random_numbers_of_the_training_are_not_touched(root, workers):
    source = loaded(here(root, workers=workers))
    seed_all(0, 0, 0)
    expected = draw()[1:]
    seed_all(0, 0, 0)
    epoch_of(source)
    assert draw()[1:] == expected  # of Python's own the checker of annotations draws


def test_fewer_images_are_chosen_evenly(root):
    source = loaded(here(root), images=6)
    assert len(source) == 6
    assert sorted(source.epochs.order(0).tolist()) == [0, 4, 9, 13, 18, 23]
    assert len(loaded(here(root), images=99)) == 24


# Kinds


def as_tar(root: Path, tmp_path: Path) -> Images:
    (tmp_path / "tar").mkdir()
    for split in SPLITS:
        with tarfile.open(tmp_path / "tar" / f"{split}.tar", "w") as tar:
            tar.add(root / split, arcname=split)
    return here(tmp_path / "tar")


def as_saved(root: Path, tmp_path: Path) -> Images:
    import datasets

    found = datasets.load_dataset(str(root), cache_dir=str(tmp_path / "cache"))
    found.save_to_disk(str(tmp_path / "saved"))
    return here(tmp_path, name=f"hfds/{tmp_path / 'saved'}")


KINDS = {
    "folder": lambda root, tmp_path: here(root),
    "tar": as_tar,
    "torchvision": lambda root, tmp_path: here(root, name="torch/image_folder"),
    "hugging face": lambda root, tmp_path: here(tmp_path / "cache", name=f"hfds/{root}"),
    "saved by hugging face": as_saved,
}


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [1, 3])
def test_all_kinds_give_the_same_images(root, tmp_path, offline, kind, channels):
    seen_as = CONFIG | {"input_size": (channels, 12, 12)}
    source = loaded(KINDS[kind](root, tmp_path), config=seen_as)
    expected = loaded(here(root), config=seen_as)
    assert source.train.classes == list(CLASSES)
    assert same([*source.validation(Share())], [*expected.validation(Share())])
    assert same(epoch_of(source), epoch_of(expected))
    assert epoch_of(source)[0][0].shape == (4, channels, 12, 12)


@WORKERS
@pytest.mark.parametrize("kind", ["tar", "torchvision", "hugging face"])
def test_every_kind_reaches_a_worker(root, tmp_path, offline, kind):
    images = KINDS[kind](root, tmp_path)
    there = loaded(images.model_copy(update={"workers": 1}))
    assert same([*there.validation(Share())], [*loaded(images).validation(Share())])


def test_a_model_is_seen_to_in_its_own_size_and_channels(root):
    found = config(vit())
    assert found["input_size"] == (1, 12, 12)
    source = loaded(here(root), config=found)
    views, _ = next(source.validation(Share()))
    assert views.shape[1:] == (1, 12, 12)
    assert -1.5 < views.mean() < 1.5


def remove_a_class(root: Path) -> None:
    shutil.rmtree(root / "train" / "bee")


def remove_the_images(root: Path) -> None:
    for path in (root / "train").rglob("*.png"):
        path.unlink()


@pytest.mark.parametrize(
    ("spoil", "arguments", "said"),
    [
        (shutil.rmtree, {}, "has no folder 'train'"),
        (None, {"validation": "val"}, "has no folder 'val' and no 'val.tar'"),
        (None, {"validation": "nothing", "name": "torch/image_folder"}, "has no folder 'nothing'"),
        (None, {"name": "torch/cifar10"}, "'train' of torch/cifar10 can't be opened: Dataset not found"),
        (None, {"name": "torch/unheard_of"}, "'train' of torch/unheard_of can't be opened"),
        (None, {"name": "hfds/./nowhere"}, "nowhere"),
        (None, {"name": "tfds/mnist"}, "data.name is 'tfds/mnist'; it should be"),
        (remove_the_images, {}, "'train' of .* can't be opened: .*train has no images in class folders"),
        (remove_a_class, {}, "'train' and 'validation' differ in their classes: bee, for one"),
    ],
)
def test_what_can_not_be_read_is_refused_in_one_sentence(root, offline, spoil, arguments, said):
    if spoil:
        spoil(root)
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        loaded(here(root, **arguments))


@pytest.mark.parametrize("views", [{"auto": "sideways"}, {"interpolation": "telepathic"}])
def test_views_that_timm_does_not_know_are_refused(root, views):
    with pytest.raises(ValueError, match=r"recipe\.views: timm knows no such views"):
        loaded(here(root), views=Views(**views))


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("magnitude", [0, 9, 10])
def test_every_augmentation_bears_every_magnitude(mode, magnitude):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)).convert(mode)
    for name in {*_RAND_TRANSFORMS, *_RAND_INCREASING_TRANSFORMS, "PosterizeOriginal"}:
        change = AugmentOp(name, prob=1.0, magnitude=magnitude, hparams={"img_mean": (128,) * len(mode)})
        assert change(image).size == (8, 8)


def test_channels_that_no_file_has_are_refused(root):
    with pytest.raises(ValueError, match="images of 4 channels"):
        loaded(here(root), config=CONFIG | {"input_size": (4, 12, 12)})


# What can't be read


@pytest.fixture
def spoilt(root) -> Path:
    """One image of the training split cut short, one of the validation split no image."""
    cut = root / "train" / "bee" / "10.png"
    cut.write_bytes(cut.read_bytes()[:100])
    (root / "validation" / "ant" / "01.png").write_bytes(b"no image")
    return root


@WORKERS
@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_ends_the_training_by_its_name(spoilt, workers):
    source = loaded(here(spoilt, workers=workers))
    with pytest.raises(ValueError, match=r"train/bee/10\.png can't be read as an image \(.*\); data.unreadable: skip"):
        epoch_of(source)
    with pytest.raises(ValueError, match=r"ant/01\.png can't be read as an image \(cannot identify image file\)"):
        [*source.validation(Share())]


@WORKERS
def test_or_it_is_left_out_and_counted(spoilt, capsys):
    source = loaded(here(spoilt, unreadable="skip"))
    batches, order = epoch_of(source), source.epochs.order(0).tolist()
    assert [len(labels) for _, labels in batches] == [4] * 6
    place = order.index(10)
    after = order[(place + 1) % 24]
    assert int(torch.cat([labels for _, labels in batches])[place]) == source.train.places[after].label
    assert len(source.skipped) == 1
    assert sum(len(labels) for _, labels in source.validation(Share())) == 8
    assert len(source.skipped) == 2
    said = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in said] == [
        "1 images could not be read and were left out in epoch 1",
        "1 images could not be read and were left out in validation",
    ]
    again = loaded(here(spoilt, unreadable="skip", workers=2))
    assert same(epoch_of(again), batches)
    assert len(again.skipped) == 1
    assert same(epoch_of(again, first=place // 4), batches[place // 4 :])
    halves = [epoch_of(source, share=Share(rank, 2)) for rank in range(2)]
    assert all(
        torch.equal(halves[rank][n][0], views[rank::2]) for n, (views, _) in enumerate(batches) for rank in (0, 1)
    )


def test_where_nothing_can_be_read_that_is_said(root):
    for path in (root / "train").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"No image of 'train' in .* can be read"):
        epoch_of(loaded(here(root, unreadable="skip")))


# Workers


@WORKERS
def test_a_killed_worker_is_told_of_in_one_sentence(root, children):
    source = loaded(here(root, workers=1))
    batches = source.batches(0, 0, Share())
    next(batches)
    (worker,) = children()
    worker.send_signal(signal.SIGKILL)
    with pytest.raises(RuntimeError, match=r"^A process that reads images has died.*fewer data\.workers.*checkpoint"):
        list(batches)
    assert same(epoch_of(source), epoch_of(loaded(here(root))))  # others take its place


@WORKERS
def test_who_starts_the_workers_outlives_what_the_training_is_told(root, children):
    source = loaded(here(root, workers=1))
    batches = source.batches(0, 0, Share())
    next(batches)
    (worker,) = children()
    server = worker.parent()
    assert server.pid != os.getpid()
    server.send_signal(signal.SIGTERM)
    assert len(list(batches)) == 5
    assert server.is_running()
    batches = source.batches(1, 0, Share())
    next(batches)
    (worker,) = children()
    worker.send_signal(signal.SIGTERM)  # so does a loader end what hangs
    with pytest.raises(RuntimeError, match="has died"):
        list(batches)
