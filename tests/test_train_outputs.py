"""The files of a run: proved writable before the first step, and one run's at a time."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from tiny_runs import a_run, data, files_of

from svite.data.memory import Data
from svite.params.run import Run
from svite.study import results
from svite.train.loop import Loop

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Data:
    return data(tmp_path_factory.mktemp("images") / "data")


@pytest.fixture(autouse=True)
def no_step(monkeypatch, request) -> None:
    """Nothing is trained before it is refused."""
    if "refused" in request.node.name:
        monkeypatch.setattr(Loop, "advance", lambda self: pytest.fail("a step was taken"))


def refused(images: Data, folder: Path, run: Run, checkpoint: Path | None = None) -> str:
    with pytest.raises(OSError) as caught:  # noqa: PT011
        results.train(run, images, folder, checkpoint=checkpoint)
    said = str(caught.value)
    assert "\n" not in said
    assert said.endswith(".")
    return said


IN_THE_WAY = [
    "models",
    "metrics/train",
    "curves/epochs",
    "curves/updates",
    "curves/layers/svite-0.5-0.csv",
    ".scratch",
    "models/svite-0.5-0.safetensors",
]


@pytest.mark.parametrize("place", IN_THE_WAY)
def test_what_lies_where_a_file_is_to_be_is_refused_before_the_first_step(images, tmp_path, place):
    blocked = tmp_path / place
    if blocked.suffix in (".csv", ".safetensors"):
        blocked.mkdir(parents=True)
    else:
        blocked.parent.mkdir(parents=True, exist_ok=True)
        blocked.write_text("a file, no folder")
    before = files_of(tmp_path)
    said = refused(images, tmp_path, a_run("svite"))
    assert "can't be written: " in said
    assert str(blocked) in said
    assert files_of(tmp_path) == before


def test_an_output_folder_that_is_a_file_or_has_too_long_a_name_is_refused(images, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    assert "can't be written: " in refused(images, file, a_run("svite"))
    assert "File name too long." in refused(images, tmp_path / ("x" * 300), a_run("svite"))
    assert "File name too long." in refused(images, tmp_path, a_run("svite"), tmp_path / f"{'x' * 245}.ckpt")


def test_a_folder_where_nothing_may_be_made_is_refused(images, tmp_path):
    """The system's own folder of processes, where root may not write either."""
    assert "can't be written: " in refused(images, Path("/proc/svite"), a_run("svite"))


@pytest.mark.parametrize("name", ["../x", "a/b", "/x", "a\\b", "", ".", "..", ".x", "-x", "a\0b", "a\nb", "ö" * 101])
def test_a_name_that_is_no_files_is_refused_as_it_is_read(name):
    with pytest.raises(ValueError, match=r"^run: name: should be the name of a file: .*\.$") as caught:
        Run.of(method="svite", density=0.5, model={"name": "test_vit"}, name=name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["x" * 200, "größer, 3", "a.b-c_d+e=f", "a[1]"])
def test_the_longest_name_that_is_allowed_can_be_written(images, tmp_path, name):
    run = a_run("set", epochs=1).model_copy(
        update={"name": Run.of(method="svite", model={"name": "x"}, name=name).name}
    )
    results.train(run, images, tmp_path)
    assert (tmp_path / "models" / f"{name}.safetensors").is_file()


@pytest.mark.parametrize("seed", [-1, 2**32, 10**400])
def test_a_seed_that_makes_no_random_numbers_is_refused_as_it_is_read(seed):
    with pytest.raises(ValueError, match=r"^run: seed: Input should be "):
        Run.of(method="svite", model={"name": "test_vit"}, seed=seed)


# One run at a time

HOLDING = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from tiny_runs import a_run
from svite.study import results
from svite.data.memory import Data
from svite.train.loop import Loop
def hold(loop):
    print("holds", flush=True)
    sys.stdin.read()
    sys.exit()
Loop.advance = hold
results.train(a_run("svite"), Data(sys.argv[2], channels=1, size=12), Path(sys.argv[3]))
"""


@pytest.fixture
def other(images, tmp_path):
    """A process that trains into a folder, and stays at its first step until it is killed."""
    command = [sys.executable, "-c", HOLDING, str(ROOT / "tests"), str(images.folder), str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, **pipes) as process:
        assert process.stdout.readline() == "holds\n"
        yield process
        process.kill()


TAKEN = r"^Another process trains svite-0\.5-0 already \(.* is locked\); wait for it to end, or give this run .*\.$"


def test_a_second_run_of_the_same_files_is_sent_away_and_one_after_a_kill_goes_on(images, tmp_path, other):
    with pytest.raises(OSError, match=TAKEN):
        results.train(a_run("svite", lr=0.02), images, tmp_path)
    results.train(a_run("svite", seed=1, epochs=1), images, tmp_path)  # beside it, into files of its own
    other.send_signal(signal.SIGKILL)
    other.wait()
    results.train(a_run("svite", epochs=1), images, tmp_path)
    assert (tmp_path / "models" / "svite-0.5-0.safetensors").is_file()


def test_a_checkpoint_is_one_runs_whatever_the_folder(images, tmp_path):
    with FileLock(tmp_path / "svite-0.5-0.lock"), pytest.raises(OSError, match=TAKEN):
        results.train(a_run("svite"), images, tmp_path / "other", checkpoint=tmp_path / "shared.ckpt")
    assert not (tmp_path / "other").exists()


def test_what_killed_runs_left_half_written_is_swept_away_by_the_next(images, tmp_path):
    halves = [
        tmp_path / "models" / ".set-0.5-0.safetensors.123.part",
        tmp_path / "models" / ".gmp-0.5-0.safetensors.9.part",
    ]
    halves[0].parent.mkdir()
    for half in halves:
        half.write_bytes(b"half")
    results.train(a_run("set", epochs=1), images, tmp_path)
    assert [half.exists() for half in halves] == [False, True]
