"""Evaluation: deterministic, in order, and what is kept of a look at the test images."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import MODEL, a_run, data, files_of

from svite import tokens
from svite.data import describe
from svite.data.memory import Data
from svite.sparsity.mask import count
from svite.study import results, testset
from svite.train.evaluate import accuracy, best, logits
from svite.train.models import build, load_model, save_model
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
def folder(tmp_path) -> Path:
    """Two untrained dense models, as a study has them."""
    for seed in (0, 1):
        torch.manual_seed(seed)
        run = a_run("dense", seed=seed)
        save_model(tmp_path / "models" / f"{run.key}.safetensors", build(MODEL), run)
    return tmp_path


def kept_of(folder: Path, key: str) -> dict[str, torch.Tensor]:
    return load_file(folder / "arrays" / "runs" / f"{key}.safetensors")


def test_a_look_at_the_test_images_keeps_the_models_guesses(images, folder):
    testset.keep_labels(images, folder)
    labels = load_file(folder / "arrays" / "test.safetensors")["labels"]
    assert torch.equal(labels.long(), images.test.labels)
    for seed in (0, 1):
        found = testset.look(a_run("dense", seed=seed), images, folder)
        scores = json.loads((folder / "metrics" / "test" / f"dense-{seed}.json").read_text())
        right = kept_of(folder, f"dense-{seed}")["predictions"][:, 0] == labels
        assert scores["top1"] == pytest.approx(100 * float(right.float().mean()), abs=1e-4)
        assert scores["top1"] == pytest.approx(found.top1, abs=1e-4)
        assert scores["top5"] == 100.0  # three classes
        assert scores["images"] == len(labels)
    assert not torch.equal(kept_of(folder, "dense-0")["predictions"], kept_of(folder, "dense-1")["predictions"])
    before = files_of(folder)
    testset.look(a_run("dense"), images, folder)
    assert files_of(folder) == before


def test_a_missing_model_leaves_the_look_unwritten(images, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"dense-2\.safetensors is missing"):
        testset.look(a_run("dense", seed=2), images, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_attention_is_averaged_over_test_images_and_kept_where_it_is_asked_for(images, folder):
    testset.look(a_run("dense"), images, folder, attended=4)
    testset.look(a_run("dense", seed=1), images, folder)
    kept = kept_of(folder, "dense-0")
    assert kept["attention"].shape == (1, 2, 3, 3)
    assert kept["attended"].tolist() == [4]
    torch.testing.assert_close(kept["attention"].sum((2, 3)), torch.ones(1, 2))  # without prefix tokens, all of it
    assert set(kept_of(folder, "dense-1")) == {"predictions"}


def test_the_tokens_that_a_model_keeps_are_kept_of_one_image_a_class(images, tmp_path):
    run = a_run("sviteplus", density=0.5)
    results.train(run, images, tmp_path)
    testset.look(run, images, tmp_path)
    testset.keep_labels(images, tmp_path)
    samples = load_file(tmp_path / "arrays" / "test.safetensors")["samples"]
    left = kept_of(tmp_path, run.key)["kept"]
    assert samples.shape == (3, 1, 12, 12)
    assert left.shape == (3, 9)
    assert left.sum(1).tolist() == [count(0.5, 9)] * 3
    model = load_model(tmp_path / "models" / f"{run.key}.safetensors")[0]
    assert torch.equal(left, tokens.kept(model, images.normalised(samples))[-1])


def test_the_data_are_described_in_numbers(images, tmp_path):
    facts = describe.facts_of(images, tmp_path)
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
