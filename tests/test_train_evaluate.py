"""Evaluation: deterministic, in order, and the test images looked at once."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import MODEL, a_run, data, files_of

from svite.data import describe
from svite.data.memory import Data
from svite.params.recipe import Model
from svite.params.study import Grid, Pair, Study
from svite.study import results, testset
from svite.train.evaluate import accuracy, best, logits
from svite.train.models import build, save_model
from svite.train.progress import MARK, Progress


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Data:
    return data(tmp_path_factory.mktemp("images") / "data")


def test_predictions_do_not_depend_on_batches_dropout_or_the_random_state(images):
    model = build(MODEL.model_copy(update={"drop_rate": 0.5}))
    model.train()
    first = logits(model, images, images.validation, batch=5)
    torch.rand(3)
    assert torch.equal(first, logits(model, images, images.validation, batch=5))
    torch.testing.assert_close(first, logits(model, images, images.validation, batch=12))
    assert model.training
    model.eval()
    torch.testing.assert_close(first, model(images.normalised(images.validation.images)))
    logits(model, images, images.validation)
    assert not model.training


def test_accuracy_is_in_percent():
    output = torch.tensor(
        [[9.0, 8, 7, 6, 5, 4, 3], [9.0, 8, 7, 6, 5, 4, 3], [9.0, 8, 7, 6, 5, 4, 3], [0, 0, 0, 0, 0, 0, 1.0]]
    )
    found = accuracy(output, torch.tensor([0, 4, 6, 6]))
    assert (found.top1, found.top5) == (50.0, 75.0)
    assert found.loss == pytest.approx(float(torch.nn.functional.cross_entropy(output, torch.tensor([0, 4, 6, 6]))))
    assert best(output[:, :3]).tolist()[0] == [0, 1, 2]  # fewer classes than five


@pytest.fixture
def models(tmp_path) -> Path:
    for seed in (0, 1):
        torch.manual_seed(seed)
        run = a_run("dense", seed=seed)
        save_model(tmp_path / "models" / f"{run.key}.safetensors", build(MODEL), run)
    return tmp_path / "models"


def test_the_last_look_keeps_each_models_guesses(images, models, tmp_path):
    out = tmp_path / "out"
    table = testset.look(["dense-0", "dense-1"], images, models, out)
    scores = json.loads((out / "metrics" / "test.json").read_text())
    guesses = load_file(out / "arrays" / "predictions.safetensors")
    assert list(scores) == ["dense-0", "dense-1"]
    assert torch.equal(guesses["labels"].long(), images.test.labels)
    for key, right in testset.correct(out).items():
        assert scores[key]["top1"] == pytest.approx(100 * float(right.float().mean()), abs=1e-4)
        assert table.top1[key] == scores[key]["top1"]
        assert scores[key]["top5"] == 100.0  # three classes
    assert not torch.equal(guesses["dense-0"], guesses["dense-1"])
    before = files_of(out)
    testset.look(["dense-0", "dense-1"], images, models, out)
    assert files_of(out) == before


def test_a_missing_model_leaves_the_last_look_unwritten(images, models, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"dense-2\.safetensors is missing"):
        testset.look(["dense-0", "dense-2"], images, models, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_attention_is_averaged_over_test_images_and_kept(images, models, tmp_path):
    maps = testset.attention(["dense-0", "dense-1"], images, models, tmp_path / "out", images=4)
    kept = load_file(tmp_path / "out" / "arrays" / "attention.safetensors")
    assert maps["dense-0"].shape == (1, 2, 3, 3)
    assert all(torch.equal(kept[key], maps[key]) for key in maps)
    torch.testing.assert_close(kept["dense-1"].sum((2, 3)), torch.ones(1, 2))  # without prefix tokens, all of it


def test_the_data_are_described_in_numbers(images, tmp_path):
    facts = describe.write(images, tmp_path)
    assert json.loads((tmp_path / "metrics" / "data.json").read_text()) == facts
    assert {name: facts[name] for name in ("train", "validation", "test", "classes")} == {
        "train": 42,
        "validation": 12,
        "test": 15,
        "classes": 3,
    }
    pixels = images.train.images.double() / 255
    assert facts["mean"] == pytest.approx(float(pixels.mean()), abs=1e-6)
    assert facts["std"] == pytest.approx(float(pixels.std()), abs=1e-4)
    assert len(describe.figure(images).axes) == 6


def test_a_line_an_epoch_says_how_long_is_left(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    progress = Progress(epochs=15, done=2)
    now[0] = 110.0
    progress.show(4, 0.5, 93.21, 0.3)
    line = capsys.readouterr().out.rstrip()
    assert line == "epoch  4/15  loss 0.500  validation 93.2 %  density 0.300  5.0 s/epoch  ETA 0:55"
    assert line.startswith(MARK)


def test_long_epochs_have_a_line_a_minute(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    progress = Progress(epochs=300, done=1.0)
    silent = Progress(epochs=300, done=1.0, speaks=False)
    for now[0] in range(0, 180, 30):
        progress.tick(1 + now[0] / 1200, 2.0)
        silent.tick(1 + now[0] / 1200, 2.0)
    assert capsys.readouterr().out.splitlines() == ["epoch 1.07/300  loss 2.000  1200.0 s/epoch  ETA 99:38:30"]


# What a notebook makes when it is run by itself


def test_ensure_trains_what_is_missing_or_another_runs_and_nothing_else(images, tmp_path, monkeypatch, capsys):
    trained = []
    train = results.train
    monkeypatch.setattr(results, "train", lambda run, *rest: trained.append(run.key) or train(run, *rest))
    run = a_run("svite", epochs=1)
    for asked in (run, run, a_run("svite", epochs=2), a_run("svite", epochs=2)):
        assert results.ensure(asked, images, tmp_path) == tmp_path / "models" / "svite-0.5-0.safetensors"
    assert trained == ["svite-0.5-0"] * 2
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_ensure_all_makes_every_run_of_a_study_and_the_halves_it_starts_from(images, tmp_path, capsys):
    recipe = a_run(epochs=2).recipe
    grid = Grid(scratch=("svite",), pretrained=("omp",), densities=(0.5,), seeds=(0,))
    larger = Model.model_validate(MODEL.model_dump() | {"depth": 2})
    pair = Pair(density=0.5, model=larger, recipe=recipe)
    study = Study(data=str(images.folder), model=MODEL, recipe=recipe, grid=grid, pair=pair)
    keys = results.ensure_all(study, images, tmp_path)
    assert keys == ["dense-0", "svite-0.5-0", "omp-0.5-0", "pair-dense", "pair-svite"]
    made = {path.stem for path in (tmp_path / "models").iterdir()}
    assert made == {*keys, "half-0"}
    assert len(capsys.readouterr().out.splitlines()) == 2 + 2 + 1 + 1 + 2 + 2
