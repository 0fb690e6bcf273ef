"""Killed at any moment, asked to end, given a damaged checkpoint or other settings: what a training run makes of it."""

import errno
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event

import psutil
import pytest
import torch
from tiny_images import class_folders, epoch_of, loaded
from tiny_runs import MODEL, RECIPE, a_run, data, files_of, loop_of

from svite.data.memory import Data
from svite.params.recipe import Images, Mixing
from svite.study import results
from svite.train import checkpoint, loop
from svite.train.checkpoint import Writer, last_good, previous, remove_halves, save_checkpoint
from svite.train.ending import Stopped
from svite.train.launch import OWN_STORE
from svite.train.nonfinite import first_layer

ROOT = Path(__file__).parent.parent
KILLS = 20


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Data:
    return data(tmp_path_factory.mktemp("images") / "data")


def in_a_child(train: Callable[[], object]) -> int:
    """Start training in a process of its own, forked from this one: its number."""
    child = os.fork()
    if not child:
        code = 1
        try:
            train()
            code = 0
        finally:
            os._exit(code)
    return child


def killed(child: int, when: Callable[[], bool]) -> bool:
    """Kill a child as soon as `when` says so; whether it was still at work then."""
    while not when():
        done, _ = os.waitpid(child, os.WNOHANG)
        if done:
            return False
        time.sleep(0.0005)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.mark.slow
def test_killed_at_twenty_moments_a_run_ends_bit_for_bit_like_one_that_was_not(images, tmp_path, monkeypatch):
    """A quarter of the kills wait for a save to be under way; the others come whenever they come."""
    monkeypatch.setattr(loop, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)  # every step is followed by a save
    moments, kills, in_mid_save, seed = random.Random(0), 0, 0, 0
    while kills < KILLS:
        run = a_run("svite", seed=seed, rotate=20.0, ema=0.9, mixing=Mixing(mixup=0.4), clip=1.0)
        cut, straight = tmp_path / f"cut-{seed}", tmp_path / f"straight-{seed}"
        for _ in range(6):
            child = in_a_child(lambda run=run, cut=cut: results.train(run, images, cut))
            part = moments.random() < 0.25
            due = time.monotonic() + moments.uniform(0.02, 0.6)
            saving = lambda cut=cut: any(cut.glob(".scratch/.*.part"))
            if not killed(child, saving if part else lambda due=due: time.monotonic() > due):
                break
            kills, in_mid_save = kills + 1, in_mid_save + saving()
        results.train(run, images, cut)
        results.train(run, images, straight)
        assert files_of(cut) == files_of(straight)
        seed += 1
    assert in_mid_save >= 3


def test_asked_to_end_it_saves_and_goes_on_later_as_if_nothing_had_been(images, tmp_path, capfd):
    run, cut, straight = a_run("svite", rotate=20.0), tmp_path / "cut", tmp_path / "straight"

    def train() -> None:
        try:
            results.train(run, images, cut)
        except Stopped as stopped:
            print(stopped, flush=True)

    child = in_a_child(train)
    while "epoch 1/4" not in capfd.readouterr().out:
        time.sleep(0.001)
    os.kill(child, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert "the same command goes on from there." in capfd.readouterr().out
    (saved,) = cut.rglob("*.ckpt")
    step = last_good(saved)["loop"]["step"]
    assert 5 < step < 20
    results.train(run, images, cut)
    results.train(run, images, straight)
    assert files_of(cut) == files_of(straight)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def params(tmp_path: Path, images: Data, **changes: object) -> Path:
    """A parameter file of `svite train`."""
    values = {"method": "svite", "density": 0.5, "data": str(images.folder), "model": MODEL.model_dump()}
    values |= {"recipe": RECIPE.model_dump(mode="json")} | changes
    path = tmp_path / "params.yaml"
    path.write_text(json.dumps(values))  # which is YAML too
    return path


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "svite", "train", *map(str, arguments)]


@pytest.fixture
def environment() -> dict[str, str]:
    return os.environ | OWN_STORE | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def test_the_command_ends_with_143_when_it_was_asked_to_end_and_then_goes_on(images, tmp_path, environment):
    asked = command("--params", params(tmp_path, images), "--output", tmp_path / "out", "--set", "recipe.epochs=40")
    with subprocess.Popen(asked, stdout=subprocess.PIPE, text=True, env=environment) as running:
        assert any(line.startswith("epoch  1/40  ") for line in running.stdout)
        running.terminate()
        said = running.stdout.read().splitlines()
    assert running.returncode == 128 + signal.SIGTERM
    assert said[-1].startswith("Stopped after step ")
    other = subprocess.run([*asked, "recipe.lr=0.5", "recipe.clip=1"], capture_output=True, text=True, env=environment)
    assert other.returncode == 1
    assert other.stderr.startswith("svite: The checkpoint ")
    assert (
        "is of other settings: run.recipe.lr was 0.01 and is 0.5, run.recipe.clip was None and is 1.0; set"
        in other.stderr
    )
    done = subprocess.run(asked, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.splitlines()[-1].startswith("svite-0.5-0: validation ")
    results.train(a_run("svite", epochs=40), images, tmp_path / "straight")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "straight")


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
def test_two_processes_have_saved_when_the_command_that_started_them_ends(images, tmp_path, environment):
    asked = command("--params", params(tmp_path, images), "--output", tmp_path / "out", "--processes", 2)
    asked += ["--set", "recipe.epochs=400"]
    with subprocess.Popen(asked, stdout=subprocess.PIPE, text=True, env=environment) as running:
        assert any(line.startswith("epoch   1/400") for line in running.stdout), "it never came so far"
        workers = [each for each in psutil.Process(running.pid).children(recursive=True) if each.is_running()]
        running.terminate()
        said = running.stdout.read()
    assert running.returncode == 128 + signal.SIGTERM
    assert not [worker for worker in workers if worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE]
    step = int(re.search(r"Stopped after step (\d+) of", said)[1])
    (saved,) = (tmp_path / "out").rglob("*.ckpt")
    assert last_good(saved)["loop"]["step"] == step


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
def test_torchrun_starts_anew_what_lost_a_process_and_it_goes_on(images, tmp_path, environment):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=2"]
    asked = ["-m", "svite", "train", "--params", params(tmp_path, images), "--set", "recipe.epochs=12", "--output"]
    straight = subprocess.run(
        [*launcher, *map(str, asked), tmp_path / "a"], capture_output=True, text=True, env=environment
    )
    assert straight.returncode == 0, straight.stderr
    with subprocess.Popen(
        [*launcher, *map(str, asked), tmp_path / "b"], stdout=subprocess.PIPE, text=True, env=environment
    ) as running:
        assert any(line.startswith("epoch  2/12") for line in running.stdout), "it never came so far"
        workers = [child for child in psutil.Process(running.pid).children() if "train" in child.cmdline()]
        assert len(workers) == 2
        workers[1].kill()
        said = running.stdout.read()
    assert running.returncode == 0, said
    assert "epoch  1/12" not in said
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


# Checkpoints


def test_a_damaged_checkpoint_gives_way_to_the_one_before_it(images, tmp_path, capsys):
    run, path = a_run("svite", rotate=20.0), tmp_path / "run.ckpt"
    made = loop_of(run, images)
    made.model.train()
    for _ in range(3):
        made.advance()
        save_checkpoint(path, {"settings": {}, "loop": made.state_dict()})
    path.write_bytes(path.read_bytes()[:-100])
    assert last_good(path)["loop"]["step"] == 2
    assert capsys.readouterr().out.startswith(f"The checkpoint {path} is damaged (")
    resumed, whole = loop_of(run, images).fit(path), loop_of(run, images).fit()
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name])
    previous(path).write_bytes(b"no checkpoint")
    path.write_bytes(b"nor this")
    with pytest.raises(ValueError, match=r"The checkpoint .*previous is damaged .*; delete it to train"):
        last_good(path)


def test_where_files_have_one_name_only_the_one_before_is_a_copy(tmp_path, monkeypatch):
    def refused(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    path = tmp_path / "run.ckpt"
    for step in range(3):
        save_checkpoint(path, {"step": step})
    assert (checkpoint.load_checkpoint(path)["step"], checkpoint.load_checkpoint(previous(path))["step"]) == (2, 1)
    assert sorted(left.name for left in tmp_path.iterdir()) == ["run.ckpt", "run.ckpt.previous"]


def test_who_is_asked_to_end_while_files_are_read_ends_and_blames_no_file(tmp_path, monkeypatch):
    path = tmp_path / "run.ckpt"
    for step in range(2):
        save_checkpoint(path, {"step": step})
    folder = data(tmp_path / "images").folder

    def asked(*_: object, **__: object) -> None:
        raise Stopped("asked to end")

    monkeypatch.setattr(torch, "load", asked)
    with pytest.raises(Stopped):
        last_good(path)
    monkeypatch.setattr("svite.data.memory.eight_bits", asked)
    with pytest.raises(Stopped):
        Data(folder, size=12).train  # noqa: B018
    monkeypatch.setattr("svite.data.views.eight_bits", asked)
    with pytest.raises(Stopped):
        epoch_of(loaded(Images(root=str(class_folders(tmp_path / "folders")), workers=0)))


def test_what_a_kill_left_half_written_is_swept_away(tmp_path):
    path = tmp_path / "run.ckpt"
    save_checkpoint(path, {"step": 1})
    half = tmp_path / ".run.ckpt.123.part"
    half.write_bytes(b"half")
    assert last_good(path) == {"step": 1}
    assert half.exists()  # whoever only looks takes nothing from one that writes
    remove_halves(path)
    assert [left.name for left in tmp_path.iterdir()] == ["run.ckpt"]


def test_a_save_waits_for_the_copy_only_and_keeps_what_was_then(tmp_path, monkeypatch):
    changed, write, weight = Event(), checkpoint.save_checkpoint, torch.ones(3)
    monkeypatch.setattr(checkpoint, "save_checkpoint", lambda *a: changed.wait(60) and write(*a))
    with Writer(tmp_path / "run.ckpt") as writer:
        writer.save({"weight": weight, "nested": [{"weight": weight}]})  # would it wait, nothing would be written
        weight.zero_()
        changed.set()
    state = checkpoint.load_checkpoint(tmp_path / "run.ckpt")
    assert state["weight"].tolist() == state["nested"][0]["weight"].tolist() == [1.0, 1.0, 1.0]


def test_a_loss_that_is_no_number_names_step_layer_and_checkpoint(images, tmp_path):
    made, path = loop_of(a_run("dense"), images), tmp_path / "run.ckpt"
    advance = made.advance

    def spoilt() -> None:
        if made.step == 7:
            made.plain_model.blocks[0].mlp.fc1.bias.data[2] = torch.inf
        advance()

    made.advance = spoilt
    with pytest.raises(loop.Diverged) as caught:
        made.fit(path)
    assert str(caught.value) == (
        "The loss is nan at step 7, in epoch 2; the first layer whose output is not finite is blocks.0.mlp.fc1. "
        f"The last good checkpoint is {path}, after step 5."
    )
    assert last_good(path)["loop"]["step"] == 5


@pytest.mark.parametrize(
    ("step", "good"), [(9, "The last good checkpoint is {}, after step 5."), (19, "after step 15.")]
)
def test_weights_that_are_no_numbers_are_not_saved_as_the_last_good_ones(images, tmp_path, step, good):
    """Of a finite loss, in the last step of an epoch, and in the last of all."""
    made, path = loop_of(a_run("dense"), images), tmp_path / "run.ckpt"
    bias = made.plain_model.blocks[0].mlp.fc1.bias
    bias.register_hook(lambda gradient: gradient * torch.nan if made.step == step else gradient)
    with pytest.raises(loop.Diverged) as caught:
        made.fit(path)
    assert str(caught.value).startswith(f"After step {step} blocks.0.mlp.fc1.bias is not finite, though the loss was; ")
    assert good.format(path) in str(caught.value)
    assert last_good(path)["loop"]["step"] == step - 4
    assert all(weight.isfinite().all() for weight in last_good(path)["loop"]["model"].values())


def test_what_breaks_between_layers_is_told_too(images):
    model = loop_of(a_run("dense"), images).plain_model
    pixels = torch.randn(2, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    model.blocks[0].attn.fused_attn = False  # what fused kernels make of logits past all numbers is the processor's
    qkv = model.blocks[0].attn.qkv.weight
    with torch.no_grad():
        qkv.mul_(1e21)
        assert first_layer(model, pixels) == "blocks.0.attn"
        qkv.mul_(1e-21)
        assert first_layer(model, pixels) == "the loss itself"
        model.pos_embed[0, 0] = torch.nan
        assert first_layer(model, pixels) == "the model, outside its layers"
        assert first_layer(model, pixels * torch.nan) == "the images"
