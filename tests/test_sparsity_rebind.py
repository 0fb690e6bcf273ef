"""A pruned model for new classes, images of another size, a copy: what still fits stays pruned, and it is said what."""

from copy import deepcopy

import pytest
import torch
from tiny import VIT, adamw, alive_of, batch, dead_are_zero, made, run, same, vit, weights_of
from torch import nn

import svite
from svite.sparsity.sparsifier import Sparsifier

NAME = "vit_tiny_patch16_224"


@pytest.fixture
def loaded(tmp_path) -> tuple[nn.Module, Sparsifier]:
    """A sparse model as it comes from a file."""
    model = vit()
    sparsifier = made("omp", model, 0.3)
    svite.save(model, tmp_path / "sparse.safetensors", sparsifier, build=(NAME, VIT))
    return svite.load(tmp_path / "sparse.safetensors")


def test_new_classes_leave_the_rest_pruned_and_everything_works_again(loaded, tmp_path):
    model, sparsifier = loaded
    before = alive_of(sparsifier)
    model.reset_classifier(3)
    build = (NAME, {**VIT, "num_classes": 3})
    for ask in (
        lambda: sparsifier.apply(model),
        lambda: svite.shrink(model, sparsifier),
        lambda: svite.save(model, tmp_path / "new.safetensors", sparsifier, build=build),
        lambda: sparsifier.attach(adamw(model)),
    ):
        with pytest.raises(ValueError, match=r"`sparsifier\.rebind\(model\)`"):
            ask()
    said = sparsifier.rebind(model)
    assert str(said) == "masked again: none; pruned no more: head.weight"
    sparsifier.apply(model)
    svite.shrink(model, sparsifier)
    svite.save(model, tmp_path / "new.safetensors", sparsifier, build=build)
    again, masks = svite.load(tmp_path / "new.safetensors")
    assert same(alive_of(sparsifier), masks.masks)
    assert same(weights_of(model), weights_of(again))
    del before["head.weight"]
    assert same(before, sparsifier.masks)
    table = sparsifier.summary()
    assert list(table.dropna(subset="target")["unit"]) == list(before)
    assert "head.weight" in set(table[table["target"].isna()]["unit"])  # dense, and said to be
    alive = sum(int(mask.sum()) for mask in before.values())
    assert sparsifier.density == alive / sum(mask.numel() for mask in before.values())


def test_after_rebind_training_goes_on_without_the_head():
    model = vit()
    sparsifier = made("svite", model)
    run(model, adamw(model), sparsifier, range(6))
    before = sparsifier.updates[:]
    model.reset_classifier(7)
    sparsifier.rebind(model)
    optimizer = adamw(model)
    sparsifier.attach(optimizer)
    run(model, optimizer, None, range(6, 24))
    assert sparsifier.step == 24
    assert sparsifier.updates[: len(before)] == before
    assert len(sparsifier.updates) > len(before)
    assert dead_are_zero(sparsifier)
    assert bool(model.head.weight.all())


def test_a_replaced_layer_of_the_same_shape_is_masked_as_the_old_one():
    model = vit()
    sparsifier = made("omp", model, 0.3)
    model.reset_classifier(5)
    said = sparsifier.rebind(model)
    assert said.masked == ("head.weight",)
    assert said.dropped == ()
    assert torch.equal(model.head.weight != 0, sparsifier.masks["head.weight"])


@pytest.mark.parametrize("method", ["svite", "s2vite"])
def test_a_copy_can_take_the_place_of_the_model(method):
    model = vit(depth=2)
    sparsifier = made(method, model)
    run(model, adamw(model), sparsifier, range(3))
    twin, original = deepcopy(model), weights_of(model)
    expected = deepcopy((model, sparsifier))
    said = sparsifier.rebind(twin)
    assert set(said.masked) == set(sparsifier.masks)
    for each, changes in (expected, (twin, sparsifier)):
        run(each, adamw(each), changes, range(3, 24))
    assert same(weights_of(expected[0]), weights_of(twin))
    assert same(original, weights_of(model))
    model.train()(batch(0)[0])  # the old model is nobody's now: nothing is laid into it
    assert same(original, weights_of(model))


def test_images_of_another_size_keep_all_that_has_its_shape():
    model = vit()
    sparsifier = made("omp", model, 0.3)
    model.set_input_size(img_size=(24, 24), patch_size=(8, 8))
    said = sparsifier.rebind(model)
    assert said.dropped == ("patch_embed.proj.weight",)
    images = torch.randn(2, 1, 24, 24, generator=torch.Generator().manual_seed(0))
    svite.verify(model, svite.shrink(model, sparsifier), images)


def test_drop_lets_layers_go_by_name_and_says_which():
    model = vit()
    sparsifier, optimizer = made("gmp", model), adamw(model)
    assert sparsifier.drop("head", "patch*") == ["patch_embed.proj.weight", "head.weight"]
    run(model, optimizer, sparsifier)
    assert bool(model.head.weight.all())
    assert sparsifier.density == 0.5
    structures = made("s2vite", vit(depth=2))
    assert structures.drop("blocks.0.attn") == ["blocks.0.attn.heads"]
    assert structures.drop("blocks.*.mlp.neurons") == ["blocks.0.mlp.neurons", "blocks.1.mlp.neurons"]


def test_what_can_not_be_dropped_or_bound_changes_nothing():
    model = vit()
    sparsifier = made("svite", model)
    before = alive_of(sparsifier)
    for ask, said in (
        (lambda: sparsifier.drop("nobody"), "is called nobody"),
        (lambda: sparsifier.drop("*"), "^Nothing would be left to prune without"),
        (lambda: sparsifier.rebind(nn.Linear(3, 3)), "^Nothing would be left to prune without"),
    ):
        with pytest.raises(ValueError, match=said):
            ask()
    sparsifier.attach(adamw(model))
    for ask in (lambda: sparsifier.drop("head"), lambda: sparsifier.rebind(model)):
        with pytest.raises(ValueError, match=r"`sparsifier\.attachment\.remove\(\)`"):
            ask()
    assert same(before, sparsifier.masks)
