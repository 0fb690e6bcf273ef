"""The options of `svite train`, each got wrong: one sentence, and nothing is written."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from filelock import FileLock
from tiny_images import class_folders
from tiny_runs import MODEL, RECIPE, data_folder

from svite.pipeline import cli, training
from svite.train.checkpoint import Writer

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Images, and the parameters of a run on them: in memory, and read from files."""
    folder = tmp_path_factory.mktemp("command")
    run = {"method": "svite", "density": 0.5, "recipe": RECIPE.model_dump(mode="json")}
    files = run | {"data": {"root": str(class_folders(folder / "files")), "workers": 0}, "model": {"name": "test_vit"}}
    memory = run | {"data": str(data_folder(folder / "data")), "model": MODEL.model_dump()}
    for name, values in (("memory", memory), ("files", files)):
        (folder / f"{name}.json").write_text(json.dumps(values))
    return folder


def ended(place: Path, output: Path, *arguments: str, params: str = "memory.json") -> str:
    """What the command says as it ends, having been given these arguments."""
    options = ["--params", str(place / params), "--output", str(output), *arguments]
    with pytest.raises(SystemExit) as caught:
        training.run(training.parser().parse_args(options))
    said = str(caught.value.code)
    assert said.startswith("svite: ")
    assert "\n" not in said
    return said


WRONG = [
    ("memory.json", "model.name=resnet18", "timm can't build 'resnet18' of these arguments: "),
    ("files.json", "model.name=resnet18", "'resnet18' is no Vision Transformer (it has no patch_embed); "),
    ("files.json", "model.name=test_vitt", "timm has no model 'test_vitt'; the nearest are test_vit, "),
    ("memory.json", "model.in_chans=2", "model.in_chans is 2; images are grey (1) or in colour (3)."),
    ("memory.json", "model.img_size=[12,12]", "model.img_size is [12, 12]; "),
    ("memory.json", "density=1e-9", "The density leaves nothing alive in "),
    ("memory.json", "method=nmm", "there is no method 'nmm'; the nearest is nm"),
    ("memory.json", "name=../../x", "name: should be the name of a file: "),
    ("memory.json", "start=/nowhere", "start: there is no model /nowhere; "),
    ("memory.json", "recipe.optimizer=adamv", "timm has no optimizer 'adamv'; the nearest are adam"),
    ("memory.json", "recipe.batch=1000", "recipe.batch is 1000, more than the 42 training images."),
    ("memory.json", "recipe.distillation={teacher: deit_tinny}", "recipe.distillation.teacher: no file, and "),
    ("no.json", "seed=1", "There is no parameter file "),
    (".", "seed=1", "can't be read: Is a directory."),
]


@pytest.mark.parametrize(("params", "change", "sentence"), WRONG, ids=[change for _, change, _ in WRONG])
def test_a_run_that_can_not_be_ends_with_one_sentence(place, tmp_path, params, change, sentence):
    assert sentence in ended(place, tmp_path / "out", "--set", change, params=params)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("processes", ["0", "-1", "x", "1.5", ""])
def test_a_number_of_processes_that_is_none_is_refused(capsys, processes):
    for parser, command in ((training.parser(), []), (cli.parser(), ["train"])):
        with pytest.raises(SystemExit):
            parser.parse_args([*command, "--params", "x", f"--processes={processes}"])
        assert f"'{processes}' should be a whole number from 1 on" in capsys.readouterr().err


def test_an_output_that_is_empty_is_refused(capsys):
    with pytest.raises(SystemExit):
        training.parser().parse_args(["--params", "x", "--output", ""])
    assert "--output: it should name a folder; . is this one" in capsys.readouterr().err


def test_every_set_counts_not_the_last_alone():
    found = training.parser().parse_args(["--params", "x", "--set", "seed=1", "recipe.lr=2", "--set", "density=0.2"])
    assert found.set == ["seed=1", "recipe.lr=2", "density=0.2"]
    assert training.parser().parse_args(["--params", "x"]).set == []


def test_processes_beside_a_launchers_own_are_refused(place, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert "--processes is 2, but a launcher has already started 3 (WORLD_SIZE); " in ended(
        place, tmp_path / "out", "--processes", "2"
    )


def test_what_is_not_used_is_told_before_anything_is_trained(place, tmp_path, capsys):
    ended(place, tmp_path, "--shard", "--set", "method=dense", "recipe.batch=1000")
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "--shard has no other process to share with: this one holds all weights."
    assert said[1].startswith("Not used in this run: density (dense keeps every weight); recipe.interval (")


def command(place: Path, output: Path, *arguments: str) -> list[str]:
    start = [sys.executable, "-m", "svite", "train", "--params", str(place / "memory.json")]
    return [*start, "--output", str(output), *arguments]


ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
def test_all_processes_of_a_second_run_end_with_its_one_sentence_and_of_a_first_share_its_lock(place, tmp_path):
    asked = command(place, tmp_path, "--processes", "2")
    (tmp_path / ".scratch").mkdir()
    with FileLock(tmp_path / ".scratch" / "svite-0.5-0.lock"):
        second = subprocess.run(asked, capture_output=True, text=True, env=ENVIRONMENT)
    assert second.returncode == 1
    assert second.stderr.count("\n") == 1
    assert second.stderr.startswith("svite: Another process trains svite-0.5-0 already (")
    first = subprocess.run(asked, capture_output=True, text=True, env=ENVIRONMENT)
    assert first.returncode == 0, first.stderr
    assert (tmp_path / "models" / "svite-0.5-0.safetensors").is_file()


def test_interrupted_it_says_how_to_go_on(place, tmp_path):
    asked = command(place, tmp_path, "--set", "recipe.epochs=4000")
    with subprocess.Popen(asked, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT) as running:
        assert any(line.startswith("epoch ") for line in running.stdout)
        running.send_signal(signal.SIGINT)
        error = running.communicate()[1]
    assert running.returncode == 1
    assert error == "\nStopped; the same command goes on from its last checkpoint.\n"


def test_interrupted_while_a_save_begins_it_tells_no_other_error(tmp_path, monkeypatch):
    def interrupted(_: threading.Thread) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt), Writer(tmp_path / "run.ckpt") as writer:
        writer.save({"step": 1})
