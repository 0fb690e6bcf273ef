"""One training run: resuming, killing, what it costs, and what it refuses."""

import copy
import json
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from tiny import same, weights_of
from tiny_runs import MODEL, a_run, data, data_folder, files_of, loop_of

from svite.data.memory import Data
from svite.data.source import Share
from svite.params.recipe import Model
from svite.study import results
from svite.train import budget
from svite.train.checkpoint import save_checkpoint
from svite.train.loop import Loop
from svite.train.models import load_model
from svite.vit.cost import macs


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Data:
    return data(tmp_path_factory.mktemp("images") / "data")


@pytest.fixture(scope="module")
def half(images, tmp_path_factory) -> Path:
    """A dense model of two epochs of four, and its metrics beside it."""
    folder = tmp_path_factory.mktemp("half")
    results.train(a_run("dense", epochs=2), images, folder)
    return folder / "models" / "dense-0.safetensors"


def steps_of(made: Loop, count: int) -> None:
    """So many steps of `fit`, without its files and lines."""
    made.model.train()
    for _ in range(count):
        made.advance()
        if made.step % made.per_epoch == 0:
            made.end_epoch()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("method", ["svite", "taylor"])
def test_resuming_from_any_step_is_bit_for_bit_the_uninterrupted_run(method, optimizer, images, tmp_path, half):
    start, epochs = (half, 2) if method == "taylor" else (None, 4)
    run = a_run(method, optimizer=optimizer, epochs=epochs)
    whole, saved = loop_of(run, images, start), []
    while whole.step < whole.steps:
        steps_of(whole, 1)
        path = tmp_path / f"{whole.step}.ckpt"
        save_checkpoint(path, {"settings": {}, "loop": whole.state_dict()})
        saved.append(path)
    assert whole.sparsifier.updates
    for path in saved[:-1:2]:
        resumed = loop_of(run, images, start)
        resumed.fit(path)
        assert same(weights_of(whole.plain_model), weights_of(resumed.plain_model)), path
        assert resumed.rows == whole.rows
        assert resumed.spent == whole.spent
        assert resumed.sparsifier.updates == whole.sparsifier.updates


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tiny_runs import a_run, data
from svite.train import checkpoint, loop
from svite.study import results
from svite.data.memory import Data
loop.SECONDS_BETWEEN_CHECKPOINTS = 0.0
write, left = checkpoint.Writer.save, 9
def save_then_die(writer, state):
    global left
    write(writer, state)
    left -= 1
    if not left:
        import os, signal
        writer.wait()
        os.kill(os.getpid(), signal.SIGKILL)
checkpoint.Writer.save = save_then_die
results.train(a_run("svite", rotate=20.0), Data(sys.argv[2], channels=1, size=12), Path(sys.argv[3]))
"""


def test_a_process_killed_in_mid_run_is_resumed_to_the_same_files(images, tmp_path, monkeypatch, capsys):
    run, cut, straight = a_run("svite", rotate=20.0), tmp_path / "cut", tmp_path / "straight"
    arguments = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(images.folder), str(cut)]
    assert subprocess.run(arguments, check=False, capture_output=True).returncode == -signal.SIGKILL
    name = f"svite-0.5-0-{results.identity(run, images, None)}.ckpt"
    left = [name, f"{name}.previous", "svite-0.5-0.lock"]
    assert sorted(path.name for path in cut.rglob("*") if path.is_file()) == left
    steps = []
    advance = Loop.advance
    monkeypatch.setattr(Loop, "advance", lambda self: steps.append(self.step) or advance(self))
    results.train(run, images, cut)
    assert steps[0] == 9
    results.train(run, images, straight)
    assert files_of(cut) == files_of(straight)
    assert not list(cut.rglob("*.ckpt*"))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == [f"epoch {n}/4" for n in (2, 3, 4, 1, 2, 3, 4)]


def test_another_run_or_other_data_never_resumes_a_checkpoint(images, tmp_path):
    run = a_run("svite")
    other = data_folder(tmp_path / "other", (13, 4, 5))
    names = {
        results.identity(run, images, None),
        results.identity(a_run("svite", lr=0.02), images, None),
        results.identity(run, Data(other, channels=1, size=12), None),
        results.identity(run, images, other / "train.tar"),
    }
    assert len(names) == 4
    assert results.identity(run, images, None) == results.identity(a_run("svite"), images, None)


@pytest.mark.parametrize("method", ["dense", "svite", "gmp", "omp", "taylor"])
def test_every_method_is_charged_the_same_images(method, images, half, tmp_path):
    start, epochs = (half, 2) if method in ("omp", "taylor") else (None, 4)
    asked = a_run(method, epochs=epochs)
    results.train(asked, images, tmp_path, start)
    key = asked.key
    found = json.loads((tmp_path / "metrics" / "train" / f"{key}.json").read_text())
    assert found["images_seen"] == epochs * 5 * 8  # steps an epoch, batch; 42 images are 5 whole batches
    assert found["images_charged"] == 4 * 5 * 8
    assert found["method"] == method
    model, run = load_model(tmp_path / "models" / f"{key}.safetensors")
    assert run == asked
    parameters = sum(p.numel() for p in model.parameters())
    assert found["parameters"] == parameters
    assert found["nonzero"] >= sum(int(p.count_nonzero()) for p in model.parameters())
    if method == "dense":
        assert found["training_cost"] == 1.0
        assert found["nonzero"] == parameters
        assert not (tmp_path / "curves" / "updates").exists()
    else:
        assert found["training_cost"] < 1.0
        assert found["density_achieved"] == pytest.approx(0.5, abs=0.01)
        updates = pd.read_csv(tmp_path / "curves" / "updates" / f"{key}.csv")
        assert list(updates.columns) == ["step", "fraction", "density", "alive", "born", "died", "itop"]
        layers = pd.read_csv(tmp_path / "curves" / "layers" / f"{key}.csv")
        assert list(layers.columns) == ["unit", "shape", "target", "achieved", "born", "died", "ever"]
        assert layers.target.notna().all()  # units only: what no unit holds is for people, in the summary
    epochs = pd.read_csv(tmp_path / "curves" / "epochs" / f"{key}.csv")
    assert list(epochs.columns) == [
        *("epoch", "step", "images", "lr", "train_loss", "validation_loss", "validation_top1"),
        *("density", "itop", "fraction"),
    ]
    assert epochs.validation_top1.iloc[-1] == pytest.approx(found["validation_top1"])
    assert list(epochs.epoch) == list(range(1, len(epochs) + 1))


def test_omp_costs_what_dense_halves_and_sparse_halves_cost(images, half, tmp_path):
    results.train(a_run("omp", 0.25, epochs=2), images, tmp_path, half)
    found = json.loads((tmp_path / "metrics" / "train" / "omp-0.25-0.json").read_text())
    model, _ = load_model(tmp_path / "models" / "omp-0.25-0.safetensors")
    counted = macs(model)
    densities = {
        name: float(weight.count_nonzero()) / weight.numel()
        for name, weight in model.named_parameters()
        if name in counted.uses
    }
    assert found["training_cost"] == pytest.approx(0.5 + 0.5 * counted.total(densities) / counted.total())


def test_a_training_step_looks_at_dead_weights_only_when_it_must(images):
    made = loop_of(a_run("svite"), images)
    counted = macs(made.plain_model)
    dense, masks = counted.total(), made.sparsifier.masks
    sparse = counted.total({name: float(mask.float().mean()) for name, mask in masks.items()})
    cost = [made.spending.step(made.sparsifier, made.optimizer, 8)]
    made.sparsifier.step = 3
    cost.append(made.spending.step(made.sparsifier, made.optimizer, 8))
    muon = loop_of(a_run("svite", optimizer="muon"), images)
    cost.append(muon.spending.step(muon.sparsifier, muon.optimizer, 8) - budget.products(muon.optimizer))
    assert cost == [8 * 3 * sparse, 8 * (2 * sparse + dense), 8 * (2 * sparse + dense)]
    assert made.spending.step(None, made.optimizer, 8) == 8 * 3 * dense
    assert sparse < 0.6 * dense


@pytest.mark.parametrize("method", ["svite", "gmp", "s2vite"])
def test_masks_are_counted_once_a_topology_and_to_the_same_sum(method, images, monkeypatch):
    made, counts, count = loop_of(a_run(method), images), [], budget.densities
    monkeypatch.setattr(budget, "densities", lambda sparsifier: counts.append(sparsifier.step) or count(sparsifier))
    made.model.train()
    topologies, spent = [made.sparsifier.alive], 0.0
    for _ in range(made.steps):
        made.advance()
        if made.sparsifier.alive is not topologies[-1]:
            topologies.append(made.sparsifier.alive)
        counted_anew = budget.Spending(macs(made.plain_model))
        with monkeypatch.context() as apart:
            apart.setattr(budget, "densities", count)
            spent += counted_anew.step(made.sparsifier, made.optimizer, 8)
    assert made.spent == spent
    assert len(made.sparsifier.updates) > 2
    assert len(topologies) - 1 <= len(counts) <= len(topologies) < made.steps


@pytest.mark.parametrize("method", ["dense", "omp", "svite"])
@pytest.mark.parametrize("epochs", [1, 3])
def test_a_run_trains_as_many_epochs_as_its_recipe_says_from_a_start_or_none(method, epochs, images, half):
    for start in (None, half):
        trained = loop_of(a_run(method, epochs=epochs), images, start).fit()
        assert [row["epoch"] for row in trained.epochs] == list(range(1, epochs + 1))
        assert trained.images == epochs * 5 * 8


def test_a_steps_batch_is_a_function_of_seed_and_step(images):
    first, second, other = (
        loop_of(a_run("dense"), images),
        loop_of(a_run("dense"), images),
        loop_of(a_run("dense", seed=1), images),
    )
    torch.rand(7)
    steps_of(first, 3)
    second.step = other.step = 3
    shown = [next(made.batches) for made in (first, second, other)]
    assert all(torch.equal(a, b) for a, b in zip(*shown[:2], strict=True))
    assert not torch.equal(shown[0][0], shown[2][0])


def test_an_epoch_shows_each_image_at_most_once_and_the_next_one_in_another_order(images):
    made = loop_of(a_run("dense", rotate=0.0, zoom=0.0, shift=0.0), images)
    epochs = []
    for epoch in range(2):
        shown = []
        for batch, _ in made.source.batches(epoch, 0, Share()):
            shown += [tuple(image.flatten().tolist()) for image in batch]
        assert len(set(shown)) == len(shown) == 40
        epochs.append(shown)
    everything = {tuple(image.flatten().tolist()) for image in images.normalised(images.train.images)}
    assert set(epochs[0]) < everything
    assert epochs[0] != epochs[1]


def test_dropout_is_a_function_of_seed_and_step_too(images):
    run = a_run("dense").model_copy(update={"model": MODEL.model_copy(update={"drop_rate": 0.3})})
    whole, resumed = loop_of(run, images), loop_of(run, images)
    steps_of(whole, 3)
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    steps_of(whole, 2)
    torch.rand(5)
    steps_of(resumed, 2)
    assert same(weights_of(whole.plain_model), weights_of(resumed.plain_model))


def test_training_follows_the_learning_rate_of_its_schedule(images):
    made = loop_of(a_run("dense", warmup=0.25), images)
    steps_of(made, made.steps)
    rates = [row["lr"] for row in made.rows]
    assert rates[0] == pytest.approx(0.008)  # still warming up, in the fifth of five steps
    assert rates[1:] == sorted(rates[1:], reverse=True)
    assert rates[1] > 0.008
    assert 0 < rates[-1] < 0.001


def test_processes_share_the_batch_without_overlap(images):
    source = loop_of(a_run("dense"), images).source
    whole, labels = next(source.batches(0, 2, Share()))
    parts = [next(source.batches(0, 2, Share(rank, 2))) for rank in range(2)]
    assert torch.equal(torch.stack([part[0] for part in parts], 1).flatten(0, 1), whole)
    assert torch.equal(torch.stack([part[1] for part in parts], 1).flatten(), labels)


def test_the_learning_rate_warms_up_and_falls(images):
    made = loop_of(a_run("dense", warmup=0.25), images)
    rates = []
    for step in range(made.steps):
        made.schedule.step_update(step)
        rates.append(made.optimizer.param_groups[0]["lr"])
    assert rates[5] == max(rates) == 0.01
    assert rates[:6] == sorted(rates[:6])
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[-1] < 0.001
    assert loop_of(a_run("dense", warmup=1.0), images).schedule is not None


# What is refused, before anything is written


def refused(tmp_path: Path, run, data, start=None, error=ValueError) -> str:
    with pytest.raises(error) as caught:
        results.train(run, data, tmp_path / "out", start)
    assert not (tmp_path / "out").exists()
    said = str(caught.value)
    assert "\n" not in said
    assert said.endswith(".")
    return said


def test_bad_runs_get_one_sentence_and_write_nothing(images, half, tmp_path):
    assert "no optimizer 'adamz'; the nearest are " in refused(tmp_path, a_run("svite", optimizer="adamz"), images)
    assert "MADGRAD is not known" in refused(tmp_path, a_run("svite", optimizer="madgrad"), images)
    few = a_run("dense").model_copy(update={"model": Model(**{**MODEL.model_dump(), "num_classes": 2})})
    assert "The images are of 3 classes, and model.num_classes is 2." in refused(tmp_path, few, images)
    assert "recipe.batch is 999, more than the 42" in refused(tmp_path, a_run("dense", batch=999), images)
    assert "leaves nothing alive in" in refused(tmp_path, a_run("svite", 0.0001), images)
    other = a_run("dense").model_copy(update={"model": Model(name="vit_tiny_no_such")})
    assert "timm has no model 'vit_tiny_no_such'; the nearest are " in refused(tmp_path, other, images)
    convolutions = a_run("svite").model_copy(update={"model": Model(name="test_resnet", num_classes=3)})
    assert "'test_resnet' is no Vision Transformer" in refused(tmp_path, convolutions, images)
    for argument, value in (("patch_size", 0), ("embed_dim", 17), ("depth", "many"), ("img_size", 10**9)):
        wrong = a_run("svite").model_copy(update={"model": MODEL.model_copy(update={argument: value})})
        assert "timm can't build 'vit_tiny_patch16_224' of these arguments: " in refused(tmp_path, wrong, images)
    wrong = a_run("dense").model_copy(update={"model": MODEL.model_copy(update={"colour": "red"})})
    assert "timm can't build" in refused(tmp_path, wrong, images)
    assert "has no gradient" in refused(tmp_path, a_run("snip"), images)


def test_bad_starting_models_get_one_sentence_and_write_nothing(images, half, tmp_path):
    run = a_run("omp")
    assert "there is no model " in refused(tmp_path, run, images, tmp_path / "no.safetensors", FileNotFoundError)
    torn = tmp_path / "models" / "dense-0.safetensors"
    torn.parent.mkdir()
    torn.write_bytes(half.read_bytes()[:2000])
    assert "dense-0.json is missing" in refused(tmp_path, run, images, torn, FileNotFoundError)
    (tmp_path / "metrics" / "train").mkdir(parents=True)
    beside = half.parent.parent / "metrics" / "train" / "dense-0.json"
    (tmp_path / "metrics" / "train" / "dense-0.json").write_text(beside.read_text())
    assert "is damaged" in refused(tmp_path, run, images, torn)
    for said in ("", "[1]", "{}", '{"images_seen": "many"}', '{"images_seen":' + "[" * 99_999):
        (tmp_path / "metrics" / "train" / "dense-0.json").write_text(said)
        assert "dense-0.json does not say what the training of " in refused(tmp_path, run, images, torn)
    bigger = run.model_copy(update={"model": MODEL.model_copy(update={"depth": 2})})
    assert "is another than the run asks for" in refused(tmp_path, bigger, images, half)


def test_a_truncated_checkpoint_is_refused_and_kept(images, tmp_path):
    run = a_run("svite")
    path = tmp_path / ".scratch" / f"svite-0.5-0-{results.identity(run, images, None)}.ckpt"
    save_checkpoint(path, {"settings": {}, "loop": loop_of(run, images).state_dict()})
    path.write_bytes(path.read_bytes()[:-200])
    before = files_of(tmp_path)
    with pytest.raises(ValueError, match=r"The checkpoint .* is damaged .*delete it to train from the start\.$"):
        results.train(run, images, tmp_path)
    assert files_of(tmp_path) == before
