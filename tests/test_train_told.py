"""What a run says of itself: settings that it never looks at, a topology at rest, steps skipped, too little memory."""

from pathlib import Path

import pytest
import torch
from tiny_runs import a_run, data, loop_of

from svite.data.memory import Data
from svite.params.recipe import Recipe, read
from svite.params.run import Training
from svite.train.checkpoint import save_checkpoint
from svite.train.ending import naming_the_batch
from svite.train.told import unused

RECIPES = Path(__file__).parent.parent / "recipes"
OF_ONE_RUN = [path for path in sorted(RECIPES.glob("*.yaml")) if "method:" in path.read_text()]


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Data:
    return data(tmp_path_factory.mktemp("images") / "data")


@pytest.mark.parametrize("recipe", OF_ONE_RUN, ids=[path.stem for path in OF_ONE_RUN])
def test_a_recipe_has_no_setting_that_its_run_never_looks_at(recipe):
    assert unused(read(recipe, Training)) == []


@pytest.mark.parametrize(
    ("recipe", "changes", "found"),
    [
        ("digits", ["recipe.views.flip=0"], "recipe.views (for images read from files"),
        ("digits", ["method=dense"], "density (dense keeps every weight)"),
        ("digits", ["method=dense", "recipe.interval=7"], "recipe.interval (dense changes no topology in training)"),
        ("digits", ["method=omp", "recipe.interval=7"], "recipe.interval (omp changes no topology in training)"),
        ("image_folder", ["recipe.rotate=3"], "recipe.rotate (for images in memory)"),
        ("image_folder", ["recipe.shift=0"], "recipe.shift (for images in memory)"),
        ("image_folder", ["start=x"], "model.pretrained (the run starts from `start`)"),
        ("digits", ["recipe.distillation={teacher: x, temperature: 2}"], "recipe.distillation.temperature"),
        ("deit_tiny_cifar10", ["recipe.mixing.mixup=0", "recipe.mixing.switch=0.2"], "recipe.mixing.switch"),
    ],
)
def test_a_setting_that_somebody_changed_and_nothing_reads_is_told(recipe, changes, found):
    assert any(said.startswith(found) for said in unused(read(RECIPES / f"{recipe}.yaml", Training, changes)))


@pytest.mark.parametrize(("interval", "rests"), [(15, False), (17, True)])
def test_a_topology_that_never_changes_is_told(images, capsys, interval, rests):
    loop_of(a_run("svite", interval=interval), images).fit()
    said = f"The topology never changes: the run has 20 steps, and recipe.interval is {interval}.\n"
    assert (said in capsys.readouterr().out) == rests


@pytest.mark.parametrize("method", ["omp", "dense"])
def test_a_topology_that_is_meant_to_rest_is_not(images, capsys, method):
    loop_of(a_run(method, epochs=1), images).fit()
    assert "never changes" not in capsys.readouterr().out


@pytest.mark.parametrize("method", ["dense", "svite"])
def test_skipped_steps_are_told_of_every_method_also_after_a_stop(images, capsys, tmp_path, method):
    made = loop_of(a_run(method, precision="fp16"), images)
    made.scaler.load_state_dict(made.scaler.state_dict() | {"scale": 2.0**40})
    made.model.train()
    for _ in range(4):
        made.advance()
    skipped = made.skipped
    assert skipped > 2
    save_checkpoint(tmp_path / "run.ckpt", {"settings": {}, "loop": made.state_dict()})
    again = loop_of(a_run(method, precision="fp16"), images)
    again.fit(tmp_path / "run.ckpt")
    assert again.skipped >= skipped
    said = f"{again.skipped} of 20 steps were skipped, their gradients too large for fp16."
    assert said in capsys.readouterr().out


# Memory


def too_much(*_: object) -> None:
    torch.empty(2**50, dtype=torch.uint8)  # more than any address space


@pytest.mark.parametrize(
    ("recipe", "processes", "said"),
    [
        ({"batch": 8}, 1, "8 images at a time; recipe.accumulate=2 has 4, to the same effect; "),
        ({"batch": 12, "accumulate": 2}, 2, "3 images at a time; recipe.accumulate=3 has 2, to the same effect; "),
        (
            {"batch": 12, "accumulate": 2, "mixing": {}},
            1,
            "6 images at a time; recipe.accumulate=3 has 4, to the same ",
        ),
        ({"batch": 2}, 2, "1 images at a time; take fewer; "),
    ],
)
def test_a_step_without_memory_says_what_would_need_less(recipe, processes, said):
    with pytest.raises(MemoryError) as caught, naming_the_batch(Recipe(**recipe), processes):
        too_much()
    assert f"There is too little memory for a step of {said}" in str(caught.value)
    with pytest.raises(MemoryError), naming_the_batch(Recipe(), 1):
        raise torch.OutOfMemoryError("CUDA out of memory.")
    with pytest.raises(RuntimeError, match=r"^another$"), naming_the_batch(Recipe(), 1):
        raise RuntimeError("another")


def test_a_training_step_without_memory_ends_with_that_sentence(images, monkeypatch):
    made = loop_of(a_run("dense"), images)
    made.plain_model.blocks[0].register_forward_hook(too_much)
    with pytest.raises(MemoryError, match=r"too little memory for a step of 8 images at a time; recipe\.accumulate=2 "):
        made.fit()


# Checkpoints that are none


@pytest.mark.parametrize("state", [{}, {"settings": {}}, [1], {"model": {"a": torch.ones(1)}}, torch.ones(3)])
def test_a_file_of_torchs_that_is_no_checkpoint_is_refused_and_kept(images, tmp_path, state):
    path = tmp_path / "run.ckpt"
    torch.save(state, path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"^The checkpoint .*run\.ckpt is no training run's; .*\.$"):
        loop_of(a_run("svite"), images).fit(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("lost", ["sparsifier", "optimizer", "scaler", "rows", "skipped"])
def test_a_checkpoint_of_another_version_is_refused_and_kept(images, tmp_path, lost):
    path, made = tmp_path / "run.ckpt", loop_of(a_run("svite"), images)
    state = made.state_dict()
    save_checkpoint(path, {"settings": {}, "loop": {name: state[name] for name in state if name != lost}})
    with pytest.raises(
        ValueError, match=rf"^The checkpoint .* is of another version of svite \(KeyError: '{lost}'\); .*"
    ):
        made.fit(path)
