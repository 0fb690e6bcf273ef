"""Files that are written whole or not at all, models and checkpoints without pickle, and a disk that is full."""

import json
import os
import pickle
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from tiny import made, same, vit, weights_of
from tiny_runs import MODEL, a_run, data, files_of

from svite.io.files import HOUR, sha256, whole, write
from svite.io.saved import load, save
from svite.params.recipe import Model
from svite.train.checkpoint import load_checkpoint, save_checkpoint
from svite.train.models import build, load_model, save_model


def test_a_file_is_the_old_one_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "new" / "note.txt"
    write(path, "old")
    with suppress(RuntimeError), whole(path) as temporary:
        temporary.write_text("half of the n")
        raise RuntimeError("power cut")
    assert files_of(tmp_path) == {"new/note.txt": b"old"}
    write(path, "new")
    assert files_of(tmp_path) == {"new/note.txt": b"new"}
    assert sha256(path) == "11507a0e2f5e69d5dfa40a62a1bd7b6ee57e6bcd85c67c9b8431b36fff21c437"


def test_what_a_killed_process_left_is_swept_when_it_is_old(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / "kept").mkdir()
    names = [f".note.txt.{dead.pid}.part", f".other.{os.getpid()}.part", f"note.{dead.pid}.part", ".note.part", "note"]
    for folder, age in ((tmp_path, 2 * HOUR), (tmp_path / "kept", 60)):
        for name in names:
            (folder / name).touch()
            os.utime(folder / name, (time.time() - age,) * 2)
        write(folder / "note.txt", "new")
    assert {path.name for path in tmp_path.iterdir()} == {*names[1:], "note.txt", "kept"}
    assert {path.name for path in (tmp_path / "kept").iterdir()} == {*names, "note.txt"}


def test_what_cannot_be_written_is_named_with_its_reason(tmp_path):
    (tmp_path / "note.txt").mkdir()
    with pytest.raises(OSError, match=r"note\.txt could not be written: Is a directory"):
        write(tmp_path / "note.txt", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


FULL = """
import json, resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
from tiny_runs import a_run
from svite.study import results
from svite.data.memory import Data
from svite.data.digits import write_digits
from svite.io.files import write
from svite.train.checkpoint import save_checkpoint
from svite.train.models import build, save_model
folder = Path(sys.argv[3])
data, model = Data(sys.argv[2], channels=1, size=12), build(a_run("dense").model)
data.train
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
said = []
for attempt in (
    lambda: write(folder / "note.txt", "n" * 5000),
    lambda: save_checkpoint(folder / "run.ckpt", model.state_dict()),
    lambda: save_model(folder / "models" / "m.safetensors", model, a_run("dense")),
    lambda: write_digits(folder / "digits"),
    lambda: results.train(a_run("dense", epochs=1), data, folder),
):
    try:
        attempt()
    except OSError as error:
        said.append(error.strerror)
print(json.dumps(said))
"""


def test_a_full_disk_leaves_no_half_written_file(tmp_path):
    """A limit on the size of a file stands in for the disk: writing past it fails in the same way."""
    images, out = data(tmp_path / "data").folder, tmp_path / "out"
    before = {"note.txt": b"old", "run.ckpt": b"old"}
    for name, content in before.items():
        write(out / name, content)
    arguments = [sys.executable, "-c", FULL, str(Path(__file__).parent), str(images), str(out)]
    done = subprocess.run(arguments, check=True, capture_output=True, text=True)
    said = json.loads(done.stdout.splitlines()[-1])
    names = ["note.txt", "run.ckpt", "m.safetensors", "train.tar", "dense-0.safetensors"]
    assert len(said) == len(names)
    for name, sentence in zip(names, said, strict=True):
        assert f"{name} could not be written: File too large" in sentence
    assert "No new checkpoint, training goes on: " in done.stdout
    assert files_of(out) == before


# Models


def test_a_model_comes_back_bit_for_bit_with_its_run_and_its_masks(tmp_path):
    run = a_run("svite")
    torch.manual_seed(3)
    model = build(MODEL)
    sparsifier = made("svite", model)
    path = tmp_path / "models" / "svite.safetensors"
    save_model(path, model, run, sparsifier)
    loaded, its_run = load_model(path)
    assert same(weights_of(model), weights_of(loaded))
    assert its_run == run
    assert list(weights_of(loaded)) == list(build(MODEL).state_dict())  # timm's own names
    kept = load(path)[1].masks
    assert kept.keys() == sparsifier.masks.keys()
    assert all(torch.equal(kept[name], mask) for name, mask in sparsifier.masks.items())
    save_model(tmp_path / "again.safetensors", model, run, sparsifier)
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("former", "today"),
    [
        ({"method": "half", "options": {}}, {"method": "dense", "options": {}, "density": 1.0}),
        ({"method": "half"}, {"method": "dense", "options": {}, "density": 1.0}),
        ({"method": "nm8", "options": {}}, {"method": "nm", "options": {"m": 8}, "density": 0.5}),
        ({"method": "nm8", "options": {"interval": 7}}, {"method": "nm", "options": {"interval": 7, "m": 8}}),
    ],
)
def test_a_model_of_a_method_that_has_another_name_today_is_loaded(former, today, tmp_path):
    path, model = tmp_path / "m.safetensors", build(MODEL)
    run = a_run("dense").model_copy(update={"density": today.setdefault("density", 0.5)})
    note = run.model_dump(mode="json", exclude={"options"}) | former
    save(model, path, build=(MODEL.name, MODEL.arguments), note={"run": note})
    loaded, its_run = load_model(path)
    assert its_run == run.model_copy(update=today)
    assert same(weights_of(model), weights_of(loaded))
    assert same(weights_of(model), weights_of(load(path)[0]))


@pytest.mark.parametrize("damage", [lambda b: b[:100], lambda b: b[:-1], lambda b: b"", lambda b: b"\xff" * 50])
def test_a_damaged_model_is_one_sentence(damage, tmp_path):
    path = tmp_path / "m.safetensors"
    save_model(path, build(MODEL), a_run("dense"))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"^The model .*m\.safetensors is damaged \(.*\); delete it and train .*\.$"):
        load_model(path)


def test_a_missing_model_says_how_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"m\.safetensors is missing; .*dvc repro"):
        load_model(tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (Model(name="vit_nowhere"), r"model\.name: timm has no model 'vit_nowhere'; the models are .{,2000}, \.\.\."),
        (MODEL.model_copy(update={"eyes": 2}), r"model: timm can't build '\w+' of these arguments: .*'eyes'"),
        (MODEL.model_copy(update={"num_heads": 3}), r"model: timm can't build '\w+' of these arguments: .*num_heads"),
    ],
)
def test_a_model_that_timm_cannot_build_is_one_sentence(model, said):
    with pytest.raises(ValueError, match=rf"^{said}\.$"):
        build(model)


# Checkpoints


def test_a_checkpoint_comes_back_and_executes_nothing(tmp_path):
    state = {"step": 3, "model": vit().state_dict(), "rows": [{"epoch": 1}]}
    save_checkpoint(tmp_path / "run.ckpt", state)
    loaded = load_checkpoint(tmp_path / "run.ckpt")
    assert loaded["rows"] == [{"epoch": 1}]
    assert same(loaded["model"], state["model"])

    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "executed",)

    torch.save({"step": Trap()}, tmp_path / "run.ckpt")
    with pytest.raises(ValueError, match="is damaged"):
        load_checkpoint(tmp_path / "run.ckpt")
    (tmp_path / "run.ckpt").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match="is damaged"):
        load_checkpoint(tmp_path / "run.ckpt")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("size", [0, 10, 1000, -1])
def test_a_truncated_checkpoint_is_one_sentence(size, tmp_path):
    path = tmp_path / "run.ckpt"
    save_checkpoint(path, {"model": vit().state_dict()})
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"^The checkpoint .*run\.ckpt is damaged \(.*\); delete it .*\.$") as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_something_else_is_one_sentence(tmp_path):
    torch.save([1, 2], tmp_path / "run.ckpt")
    with pytest.raises(ValueError, match=r"^The checkpoint .*run\.ckpt is no training run's; move it away, or delete"):
        load_checkpoint(tmp_path / "run.ckpt")
