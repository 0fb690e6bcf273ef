"""Shards of WebDataset: read in place or fetched into a bounded cache, one after another."""

import gc
import io
import json
import os
import tarfile
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_images import SPLITS, class_folders, epoch_of, loaded, same, shards, write_info
from webdataset.shardlists import expand_urls

from svite.data import cache as cache_module
from svite.data import shards as shards_module
from svite.data.cache import FILES_AT_LEAST, Cache, Unavailable
from svite.data.shards import expand
from svite.data.source import Share
from svite.params.recipe import Images

PATTERNS = {"train": "train-{00..03}.tar", "validation": "validation-{00..01}.tar"}


@pytest.fixture
def root(tmp_path) -> Path:
    return shards(tmp_path / "shards")


@pytest.fixture
def images(root, tmp_path):
    """The parameters of these shards; arguments change them."""
    given = {"name": "shards", "root": str(root), "workers": 0, "cache": str(tmp_path / "cache")} | PATTERNS
    return lambda **arguments: Images(**given | arguments)


@pytest.fixture
def remote(root):
    """The shards in fsspec's storage in memory; the URL."""
    memory = fsspec.filesystem("memory")
    memory.put(str(root), "/bucket", recursive=True)
    yield "memory://bucket"
    memory.rm("/bucket", recursive=True)


def shard_of(source, epoch: int = 0) -> list[int]:
    """The shard of each image of an epoch, in its order."""
    return [source.train.places[index][0] for index in source.epochs.order(epoch).tolist()]


def test_what_webdataset_wrote_is_read_whole(images, tmp_path):
    source = loaded(images())
    folders = loaded(Images(root=str(class_folders(tmp_path / "folders")), workers=0))
    assert same([*source.validation(Share())], [*folders.validation(Share())])
    assert len(source) == 24
    assert torch.cat([labels for _, labels in epoch_of(source)]).bincount().tolist() == [8, 8, 8]


@pytest.mark.xdist_group("workers")
def test_workers_shares_and_resumed_epochs_change_no_byte(images):
    source = loaded(images())
    expected = epoch_of(source, 1)
    assert same(epoch_of(loaded(images(workers=2)), 1), expected)
    assert same(epoch_of(loaded(images()), 1, first=3), expected[3:])
    halves = [epoch_of(source, 1, share=Share(rank, 2)) for rank in range(2)]
    for number, (views, _) in enumerate(expected):
        assert all(torch.equal(halves[rank][number][0], views[rank::2]) for rank in range(2))


def test_an_epoch_visits_shards_in_an_order_of_its_own_each_once_and_shuffled(images):
    source = loaded(images())
    visits = [shard_of(source, epoch)[::6] for epoch in range(4)]
    assert all(shard_of(source, epoch) == [s for s in visits[epoch] for _ in range(6)] for epoch in range(4))
    assert all(sorted(visit) == [0, 1, 2, 3] for visit in visits)
    assert len({*map(tuple, visits)}) > 1
    within = [source.epochs.order(epoch)[np.array(shard_of(source, epoch)) == 2].tolist() for epoch in range(2)]
    assert sorted(within[0]) == sorted(within[1]) == [12, 13, 14, 15, 16, 17]
    assert within[0] != within[1]


def test_fewer_images_are_chosen_evenly_and_repeats_stay_in_their_shard(images):
    source = loaded(images(), images=8)
    assert sorted(source.epochs.order(0).tolist()) == [0, 3, 6, 9, 13, 16, 19, 23]
    repeated = loaded(images(), views={"repeats": 2})
    assert shard_of(repeated)[:12] == [shard_of(loaded(images()))[0]] * 12


def test_a_resumed_epoch_opens_only_the_shards_that_are_left(images, remote, monkeypatch):
    shard = shard_of(loaded(images(root=remote)))[-1]  # counts all shards, so the cache is emptied
    for path in Path(images().cache, "files").iterdir():
        path.unlink()
    opened = []
    fetch = Cache.fetch
    monkeypatch.setattr(Cache, "fetch", lambda self, url: opened.append(url) or fetch(self, url))
    epoch_of(loaded(images(root=remote)), first=5)
    assert {*opened} == {f"memory://bucket/train-{shard:02d}.tar"}


# What is known of shards


def test_samples_are_counted_once_and_that_is_remembered(images, capsys, monkeypatch):
    expected = epoch_of(loaded(images()))
    assert "24 samples in 4 shards" in capsys.readouterr().out
    shards_module._index.cache_clear()
    monkeypatch.setattr(shards_module, "samples_of", None)
    assert same(epoch_of(loaded(images())), expected)


@pytest.mark.parametrize("content", ["", "{", "3", "[3]", '[["key", 1]]', "[" * 100_000])
def test_what_is_remembered_and_damaged_is_made_again(images, tmp_path, content):
    expected = epoch_of(loaded(images()))
    for stored in (tmp_path / "cache" / "index").iterdir():
        stored.write_text(content)
    shards_module._index.cache_clear()
    assert same(epoch_of(loaded(images())), expected)
    assert all(stored.read_text() != content for stored in (tmp_path / "cache" / "index").iterdir())


def test_a_shard_that_was_written_anew_is_looked_into_anew(root, images):
    first = loaded(images())
    for path in root.glob("train-*.tar"):
        path.unlink()
    shards(root, per_shard=8)
    source = loaded(images(train="train-{00..02}.tar", validation="validation-{00..01}.tar"))
    assert len(source) == len(first) == 24
    assert source.train.places[8] == (1, 0)


def test_a_shard_that_took_the_place_and_the_time_of_another_is_looked_into(root, images, tmp_path):
    loaded(images())
    path = root / "train-00.tar"
    seen, content = path.stat(), path.read_bytes()
    other = tmp_path / "other.tar"
    other.write_bytes(content.replace(b'"label": 0', b'"label": 1'))
    os.utime(other, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    other.replace(path)
    with path.open("rb") as file:
        there = shards_module.samples_of(file)
    assert shards_module.index(str(path), Cache(tmp_path / "cache", 10**9)) == there


def test_info_spares_counting_and_names_the_shards_of_a_split(root, images, monkeypatch):
    sizes = {name: 6 for name in expand(PATTERNS["train"])}
    write_info(root, train=sizes, validation={"validation-00.tar": 6, "validation-01.tar": 3})
    expected = epoch_of(loaded(images()))
    monkeypatch.setattr(shards_module, "sizes_of", None)
    assert same(epoch_of(loaded(images(train="train", validation="validation"))), expected)


def test_a_shard_of_another_size_than_announced_is_refused(root, images):
    write_info(root, train=dict.fromkeys(expand(PATTERNS["train"]), 5))
    with pytest.raises(Unavailable, match=r"train-0\d\.tar has 6 samples, where 5 were announced"):
        epoch_of(loaded(images()))


@pytest.mark.parametrize("pattern", ["a.tar", "a-{0..3}.tar", "{x,yy}/{008..011}-{1..2}.tar", "a-{2..2}{,b}"])
def test_patterns_expand_as_webdatasets_do(pattern):
    assert expand(pattern) == expand_urls(pattern)


# What a tar file may hold


def member(name: str, content: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    made = tarfile.TarInfo(name)
    made.size = len(content)
    for field, value in fields.items():
        setattr(made, field, value)
    return made, content


def write_shard(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for made, content in members:
            tar.addfile(made, io.BytesIO(content))


PICTURE, _ = SPLITS["train"][0]
IMAGE, CLASS = member("0.jpg", PICTURE), member("0.cls", b"2\n")


def test_names_that_climb_links_and_what_is_no_file_do_no_harm(root, images, tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(b"1")
    odd = [
        member("../../climbed.png", PICTURE),
        member("../../climbed.cls", b"1"),
        member("folder", type=tarfile.DIRTYPE),
        member("/absolute.PNG", PICTURE),
        member("/absolute.json", json.dumps({"label": 2}).encode()),
        member("pipe.cls", type=tarfile.FIFOTYPE),
        member("linked.png", type=tarfile.SYMTYPE, linkname=str(secret)),
        member("linked.cls", type=tarfile.LNKTYPE, linkname="/etc/passwd"),
        member(".hidden", b"x"),
        member("README", b"no sample"),
    ]
    write_shard(root / "train-00.tar", *odd)
    before = sorted(tmp_path.rglob("*.png"))
    source = loaded(images(train="train-00.tar"), batch=2)
    ((_, labels),) = epoch_of(source)
    assert sorted(labels.tolist()) == [1, 2]
    assert sorted(tmp_path.rglob("*.png")) == before
    assert [source.train.name(i).rsplit(": ")[-1] for i in range(2)] == ["../../climbed", "/absolute"]


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([IMAGE], "sample '0' has no class"),
        ([IMAGE, member("0.cls", b"two")], "sample '0' has no class"),
        ([IMAGE, member("0.json", b'{"class": 2}')], "sample '0' has no class"),
        *(
            ([IMAGE, member("0.cls", label)], "sample '0' has no class")
            for label in (b"1.9", b"true", b"1e999", b"NaN", b"9" * 30, b"[" * 100_000, b"null")
        ),
        ([CLASS], "sample '0' has no image"),
        ([CLASS, member("0.jpg", type=tarfile.SYMTYPE, linkname="/etc/passwd")], "sample '0' has no image"),
    ],
)
def test_a_sample_without_image_or_class_is_refused(root, images, members, said):
    write_shard(root / "train-00.tar", *members)
    with pytest.raises(ValueError, match=rf"train-00\.tar is not a shard that can be read: {said}"):
        loaded(images(train="train-00.tar"))


@pytest.mark.parametrize("content", [b"no tar", b"\x1f\x8b\x08" + bytes(600)])
def test_what_is_no_tar_file_is_refused(root, images, content):
    (root / "train-00.tar").write_bytes(content)
    with pytest.raises(ValueError, match=r"train-00\.tar is not a shard that can be read"):
        loaded(images(train="train-00.tar"))


def test_an_image_that_is_none_is_named_by_its_key_or_left_out(root, images):
    write_shard(root / "train-00.tar", IMAGE, CLASS, member("a/b.jpg", b"?"), member("a/b.cls", b"0"))
    with pytest.raises(ValueError, match=r"train-00\.tar: a/b can't be read as an image"):
        epoch_of(loaded(images(train="train-00.tar"), batch=2))
    source = loaded(images(train="train-00.tar", unreadable="skip"), batch=2)
    assert [labels.tolist() for _, labels in epoch_of(source)] == [[2, 2]]
    assert len(source.skipped) == 1


@pytest.mark.parametrize("where", ["root", "train"])
def test_commands_are_refused_by_name(images, where):
    with pytest.raises(ValueError, match=r"'pipe:cat x\.tar' is refused.*no command is run"):
        loaded(images(**{where: "pipe:cat x.tar"}))


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_missing_shard_is_named(root, images, scheme):
    with pytest.raises(FileNotFoundError, match=r"The shard /.*train-04\.tar is missing"):
        loaded(images(root=f"{scheme}{root}", train="train-{00..04}.tar"))


# Shards from elsewhere


def test_shards_are_fetched_whole_and_give_the_same_batches(images, remote, tmp_path):
    here, there = loaded(images()), loaded(images(root=remote))
    assert not (tmp_path / "cache" / "files").exists() or there.train.read.urls[0].startswith("memory://")
    assert same(epoch_of(there), epoch_of(here))
    assert same([*there.validation(Share())], [*here.validation(Share())])
    with pytest.raises(ValueError, match=r"memory://bucket/train-04\.tar could not be fetched"):
        loaded(images(root=remote, train="train-{00..04}.tar"))


def test_a_file_url_is_read_in_place(root, images, tmp_path):
    assert same(epoch_of(loaded(images(root=f"file://{root}"))), epoch_of(loaded(images())))
    assert not (tmp_path / "cache" / "files").exists()


def blobs(count: int, size: int = 1000) -> list[str]:
    """URLs of files in memory."""
    memory = fsspec.filesystem("memory")
    for number in range(count):
        memory.pipe(f"/blobs/{number}.tar", bytes([number]) * size)
    return [f"memory://blobs/{number}.tar" for number in range(count)]


def held(cache: Cache) -> set[str]:
    return {path.name.split("-")[-1] for path in (cache.folder / "files").iterdir()}


def test_the_cache_keeps_within_its_bound_and_forgets_what_was_used_longest_ago(tmp_path, monkeypatch):
    cache, most = Cache(tmp_path, 4500), []
    copy = cache_module.shutil.copyfileobj

    def watched(*arguments):
        copy(*arguments)
        most.append(sum(path.stat().st_size for path in (tmp_path / "files").iterdir()))

    monkeypatch.setattr(cache_module.shutil, "copyfileobj", watched)
    urls = blobs(6)
    for url in urls[:4]:
        cache.open(url).close()
    with cache.open(urls[0]) as first:  # now used later than 1, 2 and 3
        for url in urls[4:]:
            cache.open(url).close()
        assert held(cache) == {"0.tar", "3.tar", "4.tar", "5.tar"}
        for url in urls[1:5]:
            cache.open(url).close()
        assert "0.tar" not in held(cache)
        assert first.read() == bytes([0]) * 1000  # what is open stays readable
    assert max(most) <= 4500
    assert len(most) == 10


def test_the_bound_holds_while_several_fetch(tmp_path, monkeypatch):
    most, copy = [], cache_module.shutil.copyfileobj

    def watched(*arguments):
        with Cache(tmp_path, 0)._room:
            most.append(sum(path.stat().st_size for path in (tmp_path / "files").iterdir()))
        copy(*arguments)

    monkeypatch.setattr(cache_module.shutil, "copyfileobj", watched)

    def first_byte(url: str) -> bytes:
        with Cache(tmp_path, 4500).open(url) as file:
            return file.read(1)

    with ThreadPoolExecutor(3) as pool:
        fetched = [*pool.map(first_byte, blobs(9) * 2)]
    assert fetched == [bytes([number]) for number in range(9)] * 2
    assert 3000 < max(most) <= 4500


def test_a_file_that_is_cut_short_on_the_way_is_not_kept(tmp_path, monkeypatch):
    (url,) = blobs(1)
    monkeypatch.setattr(cache_module.shutil, "copyfileobj", lambda source, target, block: target.write(b"half"))
    with pytest.raises(Unavailable, match=r"0\.tar has 1000 bytes, of which 4 came"):
        Cache(tmp_path, 10_000).open(url)
    assert not held(Cache(tmp_path, 10_000))


def test_what_a_killed_process_left_of_a_file_is_no_burden(tmp_path):
    cache = Cache(tmp_path, 4500)
    *_, url = urls = blobs(5)
    for each in urls[:3]:
        cache.fetch(each)
    left = cache.path(url).with_name(f".{cache.path(url).name}.part")
    left.write_bytes(bytes(1000))
    with cache.open(url) as file:
        assert file.read() == bytes([4]) * 1000
    assert held(cache) == {"0.tar", "1.tar", "2.tar", "4.tar"}


def test_a_bound_that_is_too_small_for_shards_is_refused(tmp_path):
    (url,) = blobs(1)
    with pytest.raises(Unavailable, match=rf"cache_gigabytes is 2e-06; .* room for {FILES_AT_LEAST} such files"):
        Cache(tmp_path, 2000).fetch(url)


def test_who_asks_at_the_same_time_shares_one_fetch(tmp_path, monkeypatch):
    (url,), copied = blobs(1), []
    copy = Cache._copy
    monkeypatch.setattr(Cache, "_copy", lambda self, *where: copied.append(where) or copy(self, *where))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: Cache(tmp_path, 10_000).fetch(url), range(8)))
    assert len(copied) == 1


def test_the_next_shards_are_fetched_while_one_is_read(images, remote, monkeypatch):
    source = loaded(images(root=remote))
    asked = []
    monkeypatch.setattr(source.train, "_fetching", lambda url: asked.append(url) or object())
    visits = [f"memory://bucket/train-{shard:02d}.tar" for shard in shard_of(source)[::6]]
    batches = source.batches(0, 0, Share())
    next(batches)
    assert asked == visits[:3]
    list(batches)
    assert asked[: len(visits)] == visits


def test_no_more_than_a_batch_is_held_of_what_is_read(images, tmp_path):
    folder = tmp_path / "large"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for shard in range(2):
        members = []
        for number in range(30):
            buffer = io.BytesIO()
            noise = Image.fromarray(generator.integers(0, 255, (577, 577, 3), dtype=np.uint8))
            noise.save(buffer, "PNG", compress_level=0)
            members += [member(f"{number}.png", buffer.getvalue()), member(f"{number}.cls", b"0")]
        write_shard(folder / f"{shard}.tar", *members)
        del members
    assert (folder / "0.tar").stat().st_size > 30e6
    source = loaded(images(root=str(folder), train="{0..1}.tar", validation="{0..1}.tar"))
    gc.collect()
    tracemalloc.start()
    seen = sum(len(labels) for _, labels in source.batches(0, 0, Share()))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seen == 60
    assert most < 6e6  # an image has one megabyte, a shard thirty


@pytest.fixture
def bucket(root, monkeypatch):
    """The shards in S3, such as moto plays it on this machine; the URL."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    storage = fsspec.filesystem("s3", skip_instance_cache=True)
    storage.mkdir("bucket")
    storage.put(str(root), "bucket/shards", recursive=True)
    yield "s3://bucket/shards"
    fsspec.filesystem("s3").clear_instance_cache()
    server.stop()


def test_object_storage_gives_the_same_batches(images, bucket):
    there = loaded(images(root=bucket))
    assert same(epoch_of(there), epoch_of(loaded(images())))
    with pytest.raises(ValueError, match=r"s3://bucket/shards/train-04\.tar could not be fetched"):
        loaded(images(root=bucket, train="train-{00..04}.tar"))
