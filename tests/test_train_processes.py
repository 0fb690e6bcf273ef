"""Several real processes train as one does: the same masks, the same weights, the same metrics, from any checkpoint."""

import os
import subprocess
import sys
from pathlib import Path

import processes
import pytest
import torch
from processes import METHODS, PLAIN, trained
from tiny_runs import a_run, data_folder, loop_of

from svite.data.memory import Data

WORKER = Path(processes.__file__)
UNEVEN = (14, 5, 5)  # fifteen validation images, which neither two nor four processes share evenly


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def images(place) -> Data:
    return Data(data_folder(place / "data", UNEVEN), channels=1, size=12)


@pytest.fixture(scope="module")
def alone(images) -> dict:
    """What one process comes to."""
    found = {method: trained(loop_of(a_run(method, **PLAIN), images)) for method in METHODS}
    return found | {"averaged": trained(loop_of(a_run("svite", **PLAIN, ema=0.5), images))}


def started(count: int, images: Data, place: Path) -> list[dict]:
    """What each of so many processes came to."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", str(WORKER)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(WORKER.parent), str(WORKER.parent.parent)])}
    done = subprocess.run([*command, str(images.folder), str(place)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return [torch.load(place / f"{count}-{rank}.pt", weights_only=True) for rank in range(count)]


@pytest.fixture(scope="module")
def two(images, place) -> list[dict]:
    return started(2, images, place)


@pytest.fixture(scope="module")
def four(two, images, place) -> list[dict]:
    """Four, which find the checkpoints of the two."""
    return started(4, images, place)


def assert_alike(found: dict, expected: dict) -> None:
    """The same run up to the rounding of sums; the same masks to the last member."""
    for name, weight in expected["weights"].items():
        torch.testing.assert_close(found["weights"][name], weight, atol=2e-5, rtol=1e-4)
    for row, wanted in zip(found["rows"], expected["rows"], strict=True):
        assert row == pytest.approx(wanted, abs=1e-5)
    assert found["density"] == expected["density"]


def assert_same_masks(found: dict, expected: dict) -> None:
    assert len(found["masks"]) == len(expected["masks"])
    for masks, wanted in zip(found["masks"], expected["masks"], strict=True):
        assert all(torch.equal(masks[name], wanted[name]) for name in wanted)


def check(ranks: list[dict], alone: dict, method: str, how: str) -> None:
    for rank in ranks:
        assert_alike(rank[method + how], alone[method])
        assert_same_masks(rank[method + how], alone[method])
        same = (
            torch.equal(a, b)
            for a, b in zip(*(r[method + how]["weights"].values() for r in (rank, ranks[0])), strict=True)
        )
        assert all(same)


HOW = ("", " sharded")
SAVED = ("half", "half-sharded")


@pytest.mark.xdist_group("processes")
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("method", METHODS)
def test_two_processes_are_one(two, alone, method, how):
    if method != "dense":
        assert alone[method]["masks"]
    check(two, alone, method, how)


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("method", METHODS)
def test_four_processes_are_one(four, alone, method, how):
    check(four, alone, method, how)


@pytest.mark.xdist_group("processes")
@pytest.mark.parametrize("saved", SAVED)
def test_a_checkpoint_of_two_processes_goes_on_in_one_and_in_two(two, alone, images, place, saved):
    assert_alike(processes.resumed(images, place / f"{saved}.ckpt", shard=False), alone["averaged"])
    for how in HOW:
        if f"resumed {saved}{how}" in two[0]:
            assert_alike(two[0][f"resumed {saved}{how}"], alone["averaged"])
    assert f"resumed {saved} sharded" in two[0]


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("saved", SAVED)
def test_a_checkpoint_of_two_processes_goes_on_in_four(four, alone, saved, how):
    assert_alike(four[3][f"resumed {saved}{how}"], alone["averaged"])


@pytest.mark.xdist_group("processes")
def test_masks_that_differ_stop_every_process(two):
    for rank in two:
        assert rank["disagreement"].startswith("At step 3 the masks of process 1 differ from those of process 0; ")


@pytest.mark.xdist_group("processes")
def test_a_loss_that_is_no_number_in_one_process_stops_all(two):
    for rank in two:
        assert rank["no number"].startswith("The loss is nan at step 3, in epoch 1; ")
    assert two[1]["no number"].endswith("is the images.")
