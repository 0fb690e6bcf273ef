"""Wanda and SparseGPT against brute force in plain loops, and what both keep and refuse."""

import copy
from collections.abc import Callable

import pytest
import torch
from tiny import adamw, alive_of, batch, dead_are_zero, run, same, vit, weights_of
from torch import Tensor, nn

from svite.calibration import sparsegpt, wanda
from svite.calibration.sparsegpt import compensated
from svite.methods import omp
from svite.sparsity.layers import weights
from svite.sparsity.pool import uniform

IMAGES = batch(0)[0]
BOTH = pytest.mark.parametrize("method", [wanda, sparsegpt])


def small() -> tuple[nn.Module, Tensor]:
    """A convolution and two linear layers, all with inputs of different sizes."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(2, 6, 2, 2, bias=False), nn.ReLU(), nn.Flatten(2), nn.Linear(4, 8), nn.Linear(8, 3))
    return model, torch.randn(5, 2, 4, 4) * torch.tensor([1.0, 5.0]).view(2, 1, 1)


def read_by(model: nn.Module, index: int, images: Tensor) -> list[list[float]]:
    """What a layer of the small model reads, one row a position."""
    given = model[:index](images).detach()
    if index:
        return given.flatten(0, -2).tolist()
    windows = [given[:, :, i : i + 2, j : j + 2].flatten(1) for i in (0, 2) for j in (0, 2)]
    return torch.cat(windows).tolist()


# Wanda


@pytest.mark.parametrize("size", [2, 64])
def test_wanda_is_that_of_plain_loops_layer_by_layer(size):
    model, images = small()
    expected = copy.deepcopy(model)
    sparsifier = wanda(model, images, 0.5, batch=size)
    for index in (0, 3, 4):
        read, layer = read_by(expected, index, images), expected[index]
        lengths = [sum(row[j] ** 2 for row in read) ** 0.5 for j in range(len(read[0]))]
        for row in layer.weight.data.flatten(1):
            worth = [abs(float(w)) * length for w, length in zip(row, lengths, strict=True)]
            for j in sorted(range(len(worth)), key=lambda j: worth[j])[: len(worth) - round(len(worth) / 2)]:
                row[j] = 0
        assert torch.equal(model[index].weight, layer.weight)
    assert dead_are_zero(sparsifier)
    assert sparsifier.density == 0.5


def test_wanda_looks_at_activations_where_magnitude_does_not():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    model[1].weight.data = torch.tensor([[4.0, 3.0, 2.0, 1.0]] * 2)
    wanda(model, torch.tensor([1.0, 1.0, 10.0, 10.0]).view(1, 1, 2, 2), 0.5)
    assert model[1].weight.tolist() == [[0.0, 0.0, 2.0, 1.0]] * 2


# SparseGPT


def brute_force(weight: Tensor, hessian: Tensor, density: float, m: int, block: int) -> Tensor:
    """The optimal brain surgeon, with a new inverse for every column; columns to the left are done."""
    weight, (rows, columns), done = weight.clone(), weight.shape, 0
    inverses = [torch.linalg.inv(hessian[j:, j:]) for j in range(columns)]
    dead: set[tuple[int, int]] = set()
    for j in range(columns):
        worth = {(r, c): float(weight[r, c] ** 2 / inverses[c][0, 0]) for r in range(rows) for c in range(columns)}
        if m and j % m == 0:
            for r in range(rows):
                dead |= {*sorted([(r, c) for c in range(j, j + m)], key=worth.get)[: m - round(density * m)]}
        if not m and j % block == 0:
            here = sorted([(r, c) for r in range(rows) for c in range(j, min(j + block, columns))], key=worth.get)
            kept = int(density * rows * min(j + block, columns) + 0.5)
            dead |= {*here[: len(here) - (kept - done)]}
            done = kept
        for r in range(rows):
            if (r, j) in dead:
                weight[r, j:] -= weight[r, j] / inverses[j][0, 0] * inverses[j][:, 0]
                weight[r, j] = 0
    return weight


def correlated(columns: int) -> Tensor:
    torch.manual_seed(2)
    read = torch.randn(40, columns, dtype=torch.float64) @ torch.randn(columns, columns, dtype=torch.float64)
    return read.T @ read


@pytest.mark.parametrize("block", [1, 5, 8, 64])
@pytest.mark.parametrize(("density", "m"), [(0.5, None), (0.3, None), (0.5, 4), (0.25, 4)])
def test_the_correction_is_the_optimal_brain_surgeons(density, m, block):
    hessian, weight = correlated(12), torch.randn(5, 12, dtype=torch.float64)
    damped = hessian + 0.02 * hessian.diagonal().mean() * torch.eye(12)
    found = compensated(weight, hessian, density, m, block, damping=0.02)
    assert torch.allclose(found, brute_force(weight, damped, density, m or 0, block))
    assert int(found.count_nonzero()) == int(density * 60 + 0.5)


def test_the_correction_keeps_outputs_nearer_than_a_mask_does():
    hessian, weight = correlated(32), torch.randn(16, 32, dtype=torch.float64)
    found = compensated(weight, hessian, 0.5)

    def lost(other: Tensor) -> float:
        return float(((weight - other) @ hessian @ (weight - other).T).trace())

    assert lost(found) < 0.5 * lost(weight.masked_fill(found == 0, 0))


def test_an_input_that_is_never_there_needs_no_weight():
    hessian, weight = correlated(8), torch.randn(4, 8, dtype=torch.float64)
    hessian[3], hessian[:, 3] = 0, 0
    found = compensated(weight, hessian, 0.5)
    assert found.isfinite().all()
    assert not found[:, 3].any()


def test_sparsegpt_goes_on_with_what_pruned_layers_say():
    model, images = small()
    expected = copy.deepcopy(model)
    sparsifier = sparsegpt(model, images, 0.5, block=3, batch=2)
    for index in (0, 3, 4):
        read, weight = torch.tensor(read_by(expected, index, images)), expected[index].weight
        weight.data = compensated(weight.data.flatten(1), read.T @ read, 0.5, block=3).view_as(weight)
        assert torch.allclose(model[index].weight, weight, atol=1e-5)
    assert dead_are_zero(sparsifier)
    assert sparsifier.density == 0.5


# Both


@BOTH
def test_a_pruned_transformer_says_nearly_the_same_and_trains_on_at_its_masks(method):
    model = vit()
    before = model.eval()(IMAGES).detach()
    sparsifier = method(model, IMAGES, 0.5)
    assert sparsifier.density == pytest.approx(0.5, abs=1e-3)
    assert [*sparsifier.masks] == [*weights(model)]
    assert float((model(IMAGES) - before).detach().norm()) < 0.9 * from_magnitude(before)
    alive = alive_of(sparsifier)
    run(model.train(), adamw(model), sparsifier, range(8))
    assert same(alive, sparsifier.masks)
    assert dead_are_zero(sparsifier)


def from_magnitude(before: Tensor) -> float:
    """How far a transformer's outputs move where its smallest weights go."""
    model = vit()
    omp(model, 0.5, pool=uniform)
    return float((model.eval()(IMAGES) - before).detach().norm())


@BOTH
@pytest.mark.parametrize(("density", "m"), [(0.5, 4), (0.25, 8)])
def test_every_group_has_its_n_of_m(method, density, m):
    model = vit(img_size=15, patch_size=5)
    sparsifier = method(model, torch.randn(4, 1, 15, 15), density, m=m)
    for name, mask in sparsifier.masks.items():
        if name == "patch_embed.proj.weight":
            assert mask.all()  # 25 inputs
        else:
            assert (mask.unflatten(1, (-1, m)).sum(2) == density * m).all()
    assert dead_are_zero(sparsifier)


@BOTH
def test_layers_narrow_what_is_pruned(method):
    model = vit()
    before = weights_of(model)
    sparsifier = method(model, IMAGES, 0.5, layers=["blocks.*.mlp.*"])
    assert list(sparsifier.masks) == ["blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc2.weight"]
    moved = {name for name, value in weights_of(model).items() if not torch.equal(value, before[name])}
    assert moved == {*sparsifier.masks}


@BOTH
def test_at_full_density_nothing_changes(method):
    model = vit()
    before = weights_of(model)
    assert method(model, IMAGES, 1.0).density == 1
    assert same(before, weights_of(model))


@BOTH
def test_hooks_and_modes_are_as_they_were(method):
    model = vit()
    model.blocks.eval()
    method(model, IMAGES, 0.5)
    assert (model.training, model.blocks.training) == (True, False)
    assert not any(module._forward_pre_hooks for module in model.modules())


def grouped() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 4, 1, groups=2), nn.Flatten(), nn.Linear(64, 2))


class Aside(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(32, 4))
        self.aside = nn.Linear(4, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self[1](self[0](images))


REFUSED: dict[str, tuple[Callable[[], nn.Module], dict[str, object], str]] = {
    "density": (vit, {"density": 1.5}, r"^density is 1\.5; it must lie above 0"),
    "whole": (vit, {"density": 0.3, "m": 4}, r"^A density of 0\.3 is not a whole number of every 4 inputs"),
    "m": (vit, {"m": 0}, r"^m is 0; it must be a whole number"),
    "batch": (vit, {"batch": 0}, r"^batch is 0; it must be a whole number"),
    "images": (vit, {"images": IMAGES[0]}, r"^`images` must be a batch of shape"),
    "none": (vit, {"images": IMAGES[:0]}, r"^`images` must be a batch of shape"),
    "empty": (vit, {"density": 0.0004}, r"leaves nothing alive in patch_embed\.proj\.weight"),
    "layers": (vit, {"layers": ["tail"]}, r"^No prunable layer is called tail"),
    "groups": (grouped, {"images": torch.randn(2, 2, 4, 4)}, r"^0\.weight is neither of a linear nor of a plain"),
    "aside": (Aside, {"images": torch.randn(2, 2, 4, 4), "layers": ["aside"]}, r"^aside\.weight reads nothing"),
}


@BOTH
@pytest.mark.parametrize("name", REFUSED)
def test_what_can_not_be_is_told_in_one_sentence_and_changes_nothing(method, name):
    build, arguments, complaint = REFUSED[name]
    model = build()
    before = weights_of(model)
    given = {"images": IMAGES, "density": 0.5, **arguments}
    with pytest.raises(ValueError, match=complaint) as error:
        method(model, **given)
    assert "\n" not in str(error.value)
    assert same(before, weights_of(model))


def test_sparsegpt_refuses_a_block_or_a_damping_that_makes_no_sense():
    with pytest.raises(ValueError, match=r"^block is 0; it must be a whole number"):
        sparsegpt(vit(), IMAGES, 0.5, block=0)
    with pytest.raises(ValueError, match=r"^damping is -1; it must be a number, and not below 0"):
        sparsegpt(vit(), IMAGES, 0.5, damping=-1)
