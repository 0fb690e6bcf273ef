"""The timing harness on a clock moved by hand, and every benchmark once on a toy: no speed is asserted."""

import json
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from benchmarks import __main__, memory, step, update
from benchmarks.claim import Claim, table
from benchmarks.interleave import interleave, spread
from benchmarks.training import Training

TOY = "test_vit"


def toy():
    return VisionTransformer(img_size=16, patch_size=8, embed_dim=24, depth=1, num_heads=3, num_classes=5)


@pytest.fixture
def clock(monkeypatch):
    """A process clock that moves only when told."""
    clock = SimpleNamespace(now=0.0, log=[])

    def spend(name, seconds):
        clock.log.append(name)
        clock.now += seconds

    clock.spend = spend
    monkeypatch.setattr(time, "process_time", lambda: clock.now)
    return clock


def test_contestants_take_turns_and_only_their_own_time_counts(clock):
    durations = {"a": iter([9.0, 1.0, 2.0]), "b": iter([9.0, 4.0, 5.0])}
    calls = {name: lambda name=name: clock.spend(name, next(durations[name])) for name in durations}
    seconds = interleave(calls, rounds=2, before={"b": lambda: clock.spend("prepare", 100.0)})
    assert {name: values.tolist() for name, values in seconds.items()} == {"a": [1.0, 2.0], "b": [4.0, 5.0]}
    assert "".join(clock.log).replace("prepare", "p") == "pbaapbpba"


def test_the_spread_holds_the_median():
    found = spread(np.arange(101.0))
    assert found["value"] == 50
    assert found["quartiles"] == [25, 75]
    assert 25 < found["interval"][0] < 50 < found["interval"][1] < 75
    assert found == spread(np.arange(101.0))


@pytest.mark.parametrize(("bound", "holds"), [(1.25, True), (1.1, False), (None, None)])
def test_a_claim_holds_if_its_whole_interval_does(bound, holds):
    claim = Claim("step", "x dense", 1.0, (0.9, 1.2), (0.8, 1.3), bound)
    assert claim.holds is holds
    assert claim.entry()["holds"] is holds
    assert ("| NO |" in table([claim])) is (holds is False)


def test_the_timed_calls_are_what_they_are_called(monkeypatch):
    made = []

    def remembered(*arguments):
        made.append(Training(*arguments))
        return made[-1]

    monkeypatch.setattr(step, "Training", remembered)
    monkeypatch.setattr(update, "Training", remembered)
    assert len(step.measure("toy", toy, rounds=2, batch=2, density=0.5)) == 3
    assert len(update.measure("toy", toy, rounds=2, batch=2, densities=(0.5, 0.3))) == 2
    assert [training.sparsifier and len(training.sparsifier.updates) for training in made] == [None, 0, 3, None, 3, 3]
    assert [round(training.sparsifier.density, 1) for training in made if training.sparsifier] == [0.5, 0.5, 0.5, 0.3]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_command_writes_every_claim(tmp_path, monkeypatch, capsys):
    threads, output = torch.get_num_threads(), tmp_path / "new" / "bench.json"
    monkeypatch.setattr(__main__, "TINY", TOY)
    monkeypatch.setattr(__main__, "SMALL", TOY)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--rounds", "1", "--output", str(output)])
    try:
        __main__.main()
    finally:
        torch.set_num_threads(threads)
    result = json.loads(output.read_text())
    assert result["machine"]["threads"] == 1
    assert [claim["bound"] for claim in result["claims"]] == [memory.BOUND] * 2 + [
        None,
        step.BOUND,
        None,
        None,
        1.0,
        1.0,
    ]
    held = result["claims"][0]
    assert 1 < held["value"] <= memory.BOUND
    assert held["holds"]
    assert len(capsys.readouterr().out.splitlines()) == 2 + len(result["claims"])
