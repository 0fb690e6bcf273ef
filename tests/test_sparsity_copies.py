"""Copies of a model with its sparsifier go on as the original does, bit for bit."""

from copy import deepcopy

import pytest
import torch
from tiny import OPTIMIZERS, adamw, alive_of, made, run, same, vit, weights_of
from torch import nn

import svite

STEPS = range(50)


def training(method: str, optimizer: str = "adamw", **arguments: object) -> tuple:
    model = vit(depth=2)
    return model, made(method, model, **arguments), OPTIMIZERS[optimizer](model)


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 1, 0)], ids=["model", "sparsifier", "optimizer"])
@pytest.mark.parametrize("attach", [False, True], ids=["calls", "attach"])
@pytest.mark.parametrize(
    ("method", "optimizer", "arguments"),
    [
        ("svite", "adamw", {}),
        ("svite", "sgd", {"cut": svite.structures}),
        ("s2vite", "adamw", {}),
        ("set", "muon", {"cut": svite.neurons}),
        ("rigl", "adamw", {"batches": 3}),
    ],
)
def test_a_copy_goes_on_as_its_original(method, optimizer, arguments, attach, order):
    model, sparsifier, optimizer = training(method, optimizer, **arguments)
    if "vite" in method:
        svite.narrow(model, sparsifier)
    if attach:
        sparsifier.attach(optimizer)
    run(model, optimizer, None if attach else sparsifier, STEPS[:6])
    before = alive_of(sparsifier)
    original = (model, sparsifier, optimizer)
    copied = dict(zip(order, deepcopy(tuple(original[index] for index in order)), strict=True))
    for twin, changes, trained in (original, (copied[0], copied[1], copied[2])):
        run(twin, trained, None if attach else changes, STEPS[6:])
    assert same(weights_of(model), weights_of(copied[0]))
    assert copied[1].updates == sparsifier.updates
    assert copied[1].step == sparsifier.step == 50
    assert not same(before, sparsifier.masks)
    assert model.blocks[0].attn.qkv.weight is not copied[0].blocks[0].attn.qkv.weight


def test_a_copy_without_its_optimizer_trains_with_one_of_its_own():
    model, sparsifier, optimizer = training("s2vite")
    handle = sparsifier.attach(optimizer)
    run(model, optimizer, None, range(3))
    twin, other, hooks = deepcopy((model, sparsifier, handle))
    assert other.attachment is hooks
    hooks.remove()
    optimizer = adamw(twin)
    other.attach(optimizer)
    run(twin, optimizer, None, STEPS[3:20])
    assert sum(update.born for update in other.updates) > 0
    assert sparsifier.step == 3
    assert other.step == 20


def test_a_copy_of_the_model_alone_takes_no_part():
    model, sparsifier, optimizer = training("s2vite")
    twin = deepcopy(model)
    run(model, optimizer, sparsifier, range(4))
    before = weights_of(twin)
    with torch.enable_grad():
        twin.train()(torch.randn(2, 1, 12, 12, generator=torch.Generator().manual_seed(0)))
    assert same(before, weights_of(twin))


def test_a_module_that_holds_both_is_copied_whole():
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = vit()
            self.sparsifier = made("s2vite", self.model)

    both = Both()
    twin = deepcopy(both)
    assert twin.sparsifier.model is twin.model
    for each in (both, twin):
        run(each.model, adamw(each.model), each.sparsifier)
    assert same(weights_of(both), weights_of(twin))
    assert sum(update.born for update in twin.sparsifier.updates) > 0
