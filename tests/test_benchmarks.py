"""The timing harness on a clock moved by hand, and every benchmark once on a toy: no speed is asserted."""

import itertools
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from benchmarks import (
    __main__,
    deployed,
    inference,
    latency,
    loading,
    loops,
    memory,
    outputs,
    peers,
    peers_runtime,
    scale,
    scaling,
    step,
    update,
)
from benchmarks import card as card_of
from benchmarks.claim import Claim, table
from benchmarks.interleave import interleave, spread
from benchmarks.training import Training
from svite.params.run import Run
from svite.params.study import Study
from svite.pipeline.notebooks import read_yaml
from svite.train.models import build, save_model

TOY = "test_vit"
ROOT = Path(__file__).parents[1]


def toy():
    return VisionTransformer(img_size=16, patch_size=8, embed_dim=24, depth=1, num_heads=3, num_classes=5)


def toy_of(**arguments):
    small = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_classes": 5}
    return VisionTransformer(**small | arguments)


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


@pytest.mark.parametrize(("floor", "holds"), [(0.85, True), (0.95, False)])
def test_a_floor_holds_if_the_whole_interval_is_above_it(floor, holds):
    claim = Claim("speed", "x dense", 1.0, (0.9, 1.2), (0.8, 1.3), floor=floor)
    assert claim.holds is holds
    assert f"at least {floor}" in table([claim])


def test_half_of_the_heads_and_neurons_are_really_gone():
    models = inference.contestants(lambda: toy_of(num_heads=4), at=(1,))
    assert models["half"].blocks[0].attn.num_heads == models["selected"].blocks[0].attn.num_heads == 2
    assert models["half"].blocks[1].mlp.fc1.out_features == models["dense"].blocks[1].mlp.fc1.out_features / 2
    assert [hasattr(block, "selector") for block in models["selected"].blocks] == [False, True]


def test_trained_models_are_timed_against_the_dense_one_and_missing_ones_left_out(tmp_path):
    study = Study.model_validate(read_yaml(ROOT / "params.yaml"))
    run = Run(method="dense", model=study.model)
    save_model(tmp_path / "dense-0.safetensors", build(study.model), run)
    save_model(tmp_path / "gmp-0.3-0.safetensors", build(study.model), run)
    found = latency.measure(study, tmp_path, rounds=2)
    assert list(found) == ["dense-0", "gmp-0.3-0"]
    assert list(found["dense-0"]) == ["macs", "1", "64"]
    assert found["gmp-0.3-0"]["64"]["deployed"] > 0
    assert found["dense-0"]["1"]["speedup"] == 1
    assert found["gmp-0.3-0"]["64"]["milliseconds"] > 0
    assert latency.measure(study, tmp_path / "nowhere", rounds=2) == {}


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
    assert [training.sparsifier and len(training.sparsifier.updates) for training in made] == [None, 0, 3, None, 4, 4]
    assert [round(training.sparsifier.density, 1) for training in made if training.sparsifier] == [0.5, 0.5, 0.5, 0.3]


def test_a_part_that_is_measured_again_replaces_its_own_claims_alone(tmp_path):
    path = tmp_path / "bench.json"
    for part, value in (("step", 1), ("memory", 2), ("step", 3)):
        __main__.replace(path, {"rounds": value}, part, [{"name": part, "value": value}])
    assert [(c["part"], c["value"], c["rounds"]) for c in json.loads(path.read_text())["claims"]] == [
        ("memory", 2, 2), ("step", 3, 3),
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # timm's loader leaves closing them to Python
def test_the_command_writes_every_claim(tmp_path, monkeypatch, capsys):
    threads, output, card_peak = torch.get_num_threads(), tmp_path / "new" / "bench.json", card_of.peak
    monkeypatch.setattr(__main__, "TINY", TOY)
    monkeypatch.setattr(__main__, "SMALL", TOY)
    monkeypatch.setattr(__main__, "BASE", TOY)
    monkeypatch.setattr(__main__, "AT", (1,))
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    monkeypatch.setattr(peers_runtime, "find_spec", lambda name: name == "onnxruntime")
    monkeypatch.setattr(deployed, "SHAPES", ((48, 32), (64, 32)))
    monkeypatch.setattr(deployed, "TOKENS", 32)
    monkeypatch.setattr(scaling, "started", lambda processes: 2.0 / processes)
    monkeypatch.setattr(torch, "compile", lambda model: model)  # takes minutes
    monkeypatch.setattr(card_of, "copy_bandwidth", lambda: 1e10)
    peaks = itertools.count(1)
    monkeypatch.setattr(card_of, "peak", lambda call, images: card_peak(call, images) if next(peaks) == 1 else 1)
    options = {"--rounds": 1, "--output": output, "--models": tmp_path, "--latency": tmp_path / "latency.json"}
    monkeypatch.setattr(sys, "argv", ["benchmarks", *(str(word) for option in options.items() for word in option)])
    try:
        __main__.main()
    finally:
        torch.set_num_threads(threads)
    result = json.loads(output.read_text())
    assert result["machine"]["threads"] == 1
    bounds = [memory.BOUND] * 2 + [None, None, step.BOUND, None, None, 1.0, 1.0]
    floors = [loading.FLOOR_OF_TIMM, loading.FLOOR_OF_STEP, None]  # of images that are read
    floors += [1.75, 1.75, 0.8, 2.5, 2.5, 0.8, 2.0, 2.0, 0.8, 3.0, 3.0, 0.8, 1.35, 1.7]  # of what is taken away whole
    floors += [2.0, 3.8, 7.0, 3.0] * 2  # of layers
    floors += [0.97, 0.97, 0.97, 1.5, 2.4, 3.2, 3.5, 0.97, 0.97, 0.97, 0.97, 1.8, 0.97, 1.8, 3.0]  # of whole models
    ends = [(claim["bound"], claim["floor"]) for claim in result["claims"]]
    kept = [(bound, None) for bound in bounds] + [(None, floor) for floor in floors]
    kept += [(None, loops.EQUAL), (loops.SPARSE, None), (None, None), (1.0, None), (None, None), (None, scaling.FLOOR)]
    large = [memory.BOUND] * 2 + [None, None, scale.UPDATE_SECONDS, None, None, None]
    kept += [(bound, None) for bound in large]
    kept += [(bound, None) for _, bound in outputs.CUTS.values()]
    assert ends == kept
    assert [claim["part"] for claim in result["claims"]] == sorted(
        (claim["part"] for claim in result["claims"]), key=__main__.PARTS.index
    )
    assert not (tmp_path / "latency.json").exists()
    card = result["card"]["rows"]
    assert {row["batch"] for row in card} == {1, 8, 64}
    assert {"eager", "torch.compile", "ONNX Runtime", "svite.deploy"} == {row["runtime"] for row in card}
    assert all(row["milliseconds"] > 0 and row["of_the_limit"] > 0 for row in card)
    assert next(row for row in card if row["model"] == "90% sparse")["megabytes_stored"] < card[0]["megabytes_stored"]
    held = result["claims"][0]
    assert 1 < held["value"] <= memory.BOUND
    assert held["holds"]
    printed = {claim["part"] for claim in result["claims"]} | {"peers"}  # which has no claims here
    assert capsys.readouterr().out.count("\n| ") == len(result["claims"]) + len(printed) - 1
