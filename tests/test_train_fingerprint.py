"""A checkpoint goes on over the images that it was trained on, and over no others."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_images import class_folders, loaded, pictures, shards
from tiny_runs import MODEL, RECIPE, a_run, data_folder

from svite.data.fingerprint import glimpse, of_rows
from svite.data.memory import Data
from svite.params.recipe import Images
from svite.study import results
from svite.train.checkpoint import refuse_changed


def more(root: Path) -> None:
    for number, (content, _) in enumerate(pictures(8, seed=5)):
        (root / "train" / "cat" / f"new{number}.png").write_bytes(content)


def other(root: Path) -> None:
    Image.fromarray(np.zeros((30, 30, 3), np.uint8)).save(root / "validation" / "bee" / "03.png")


def renamed(root: Path) -> None:
    (root / "train" / "ant" / "00.png").rename(root / "train" / "ant" / "99.png")


def moved(root: Path) -> None:
    for split in ("train", "validation"):
        (root / split / "ant").rename(root / split / "ape")


def bitmaps(root: Path) -> None:
    """Files of one size, whatever is in them."""
    for path in [*root.rglob("*.png")]:
        Image.open(path).save(path.with_suffix(".bmp"))
        path.unlink()


def exchanged(root: Path) -> None:
    (root / "train" / "ant").rename(root / "train" / "x")
    (root / "train" / "bee").rename(root / "train" / "ant")
    (root / "train" / "x").rename(root / "train" / "bee")
    for label in ("ant", "bee"):  # by the same names
        for number, path in enumerate(sorted((root / "train" / label).iterdir())):
            path.rename(path.with_name(f"{number:02d}.bmp"))


def repainted(root: Path) -> None:
    path = sorted((root / "train" / "cat").iterdir())[3]
    Image.fromarray(np.zeros((14, 14, 3), np.uint8)).save(path)


CHANGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "more": (more, r"images\.train\.cat was 'class 2, 8 images of .* bytes \(\w{8}\)' and is 'class 2, 32 images of"),
    "other": (other, r"images\.validation\.bee was 'class 1, 3 images of .*' and is 'class 1, 3 images of"),
    "renamed": (renamed, r"images\.train\.ant was 'class 0, 8 images of .*' and is 'class 0, 8 images of"),
    "another class": (moved, r"images\.train\.ant was 'class 0, 8 images of .*' and is None"),
}


def prints(root: Path) -> dict:
    return {"images": loaded(Images(root=str(root), workers=0)).fingerprint}


@pytest.mark.parametrize("change", CHANGES)
def test_other_images_are_refused_and_what_differs_is_named(change, tmp_path):
    before = prints(class_folders(tmp_path / "images"))
    refuse_changed(before, prints(class_folders(tmp_path / "elsewhere")), "run.ckpt")  # the same, in another place
    alter, said = CHANGES[change]
    alter(tmp_path / "images")
    with pytest.raises(ValueError, match=said) as caught:
        refuse_changed(before, prints(tmp_path / "images"), "run.ckpt")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [exchanged, repainted])
def test_files_of_one_size_are_looked_into(change, tmp_path):
    found = []
    for place in ("one", "two"):
        bitmaps(root := class_folders(tmp_path / place))
        for label in ("ant", "bee"):
            for number, path in enumerate(sorted((root / "train" / label).iterdir())):
                path.rename(path.with_name(f"{number:02d}.bmp"))
        found.append(prints(root))
    assert found[0] == found[1]
    change(tmp_path / "two")
    assert prints(tmp_path / "two") != found[0]
    assert len({path.stat().st_size for path in tmp_path.rglob("*.bmp")}) == 1


def test_a_file_is_seen_at_equal_distances(tmp_path):
    (tmp_path / "long").write_bytes(bytes(10**6))
    before = glimpse(tmp_path / "long", 0, 10**6)
    assert len(before) < 10**5
    for start in range(0, 10**6, 10**5):
        content = bytearray(10**6)
        content[start : start + 10**5] = b"x" * 10**5
        (tmp_path / "long").write_bytes(content)
        assert glimpse(tmp_path / "long", 0, 10**6) != before
    (tmp_path / "short").write_bytes(b"0123456789")
    assert glimpse(tmp_path / "short", 2, 5) == b"23456"
    assert glimpse(tmp_path / "nowhere", 0, 5) == b""


class Rows:
    """As torchvision has them; the second can't be read."""

    def __init__(self, *values: int) -> None:
        self.values, self.targets = values, [0, 1, 0]

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, at: int) -> tuple[Image.Image, int]:
        if at == 1:
            raise OSError("damaged")
        return Image.fromarray(np.full((4, 4), self.values[at], np.uint8)), self.targets[at]


def test_rows_are_looked_into_and_one_that_is_damaged_is_left_to_who_reads_it():
    (said,) = of_rows(Rows(1, 2, 3), ["a", "b"]).values()
    assert said.startswith("3 images of classes ")
    assert of_rows(Rows(1, 2, 3), ["a", "b"]) == {"all": said}
    assert of_rows(Rows(1, 2, 4), ["a", "b"]) != {"all": said}


def test_a_folder_may_move_where_its_images_are_known_by_name_and_size(tmp_path):
    here, there = (Images(root=str(tmp_path / place)) for place in ("here", "there"))
    assert results.settings(a_run("dense"), here, None) == results.settings(a_run("dense"), there, None)
    here, there = (Images(name="torch/cifar10", root=str(tmp_path / place)) for place in ("here", "there"))
    assert results.settings(a_run("dense"), here, None) != results.settings(a_run("dense"), there, None)


def test_many_differences_are_counted():
    before, now = ({"images": {f"class {n}": f"{n + more} images" for n in range(1000)}} for more in (0, 1))
    with pytest.raises(ValueError, match=r"class 2 was '2 images' and is '3 images' and 997 more; set them back"):
        refuse_changed(before, now, "run.ckpt")


def test_shards_are_known_by_name_samples_and_bytes(tmp_path):
    splits = {"train": "train-{00..03}.tar", "validation": "validation-00.tar"}
    found = loaded(Images(name="shards", root=str(shards(tmp_path)), **splits)).fingerprint["train"]
    assert list(found) == [f"train-{number:02d}.tar" for number in range(4)]
    assert all(said.startswith("6 samples in ") for said in found.values())
    path = tmp_path / "train-00.tar"
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"label": 0', b'"label": 1').replace(b'"label": 2', b'"label": 0'))
    assert path.read_bytes() != content
    again = loaded(Images(name="shards", root=str(tmp_path), **splits)).fingerprint["train"]
    assert [name for name in found if again[name] != found[name]] == ["train-00.tar"]


def test_images_in_memory_are_known_by_their_pixels(tmp_path):
    found = []
    for number, size in enumerate((14, 14, 15)):
        folder = data_folder(tmp_path / str(number), (size, 4, 5))
        found.append({"images": results.source_for(a_run("dense"), Data(folder, size=12)).fingerprint})
    assert set(found[0]["images"]["train"]) == {"class 0", "class 1", "class 2"}
    refuse_changed(found[0], found[1], "run.ckpt")
    with pytest.raises(ValueError, match=r"class 0 was '14 images \(\w{8}\)' and is '15 images"):
        refuse_changed(found[0], found[2], "run.ckpt")


def test_the_command_refuses_images_that_were_added_while_it_was_stopped(tmp_path):
    root = class_folders(tmp_path / "images")
    run = {
        "method": "dense",
        "model": {**MODEL.model_dump(), "in_chans": 3},
        "recipe": RECIPE.model_dump(mode="json") | {"epochs": 4000, "batch": 8},
        "data": {"root": str(root), "workers": 0},
    }
    params = tmp_path / "params.json"
    params.write_text(json.dumps(run))
    asked = [sys.executable, "-m", "svite", "train", "--params", str(params), "--output", str(tmp_path / "out")]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    with subprocess.Popen(asked, stdout=subprocess.PIPE, text=True, env=environment) as running:
        lines = []
        while not (line := running.stdout.readline()).startswith("epoch "):
            lines.append(line.strip())
            assert line
        running.send_signal(signal.SIGTERM)
        running.stdout.read()
    assert running.returncode == 128 + signal.SIGTERM
    assert lines[-3:] == ["train: 24 images of 3 classes", "validation: 9 images of 3 classes", "on cpu, 1 thread"]
    more(root)
    second = subprocess.run(asked, capture_output=True, text=True, env=environment)
    assert second.returncode == 1
    assert second.stderr.startswith("svite: The checkpoint ")
    assert "images.train.cat was 'class 2, 8 images of" in second.stderr
    assert second.stderr.count("\n") == 1
