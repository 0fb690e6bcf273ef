"""A frozen layer's topology rests, which is told; it goes on where the layer trains again."""

import warnings

import pytest
import torch
from tiny import DYNAMIC, SHORT, adamw, alive_of, backward, dead_are_zero, made, muon, run, same, train, vit

FROZEN = "blocks.0.mlp.fc1.weight"
TOLD = rf"^{FROZEN} is frozen; its topology rests until it trains\.$"
quiet = pytest.mark.filterwarnings("ignore:.*its topology rests")


def nonzeros(sparsifier) -> int:
    return sum(int(weight.count_nonzero()) for weight in sparsifier.weights.values())


@quiet
@pytest.mark.parametrize("attach", [False, True], ids=["calls", "attach"])
@pytest.mark.parametrize("method", [*DYNAMIC, "gmp", "taylor"])
def test_a_frozen_layer_keeps_its_topology_and_the_others_change(method, attach):
    model = vit()
    model.get_parameter(FROZEN).requires_grad_(False)
    sparsifier, optimizer = made(method, model), adamw(model)
    if attach:
        sparsifier.attach(optimizer)
    before, weights = alive_of(sparsifier), model.get_parameter(FROZEN).clone()
    for _ in train(model, optimizer, None if attach else sparsifier, SHORT):
        assert dead_are_zero(sparsifier)
    assert len(sparsifier.updates) == 2
    assert torch.equal(sparsifier.masks[FROZEN], before[FROZEN])
    assert torch.equal(model.get_parameter(FROZEN), weights)
    assert not torch.equal(sparsifier.masks["blocks.0.mlp.fc2.weight"], before["blocks.0.mlp.fc2.weight"])


@quiet
@pytest.mark.parametrize("make", [adamw, muon], ids=["adamw", "muon"])
def test_freezing_half_way_and_back_never_loses_weights(make):
    model = vit()
    sparsifier, optimizer = made("set", model), make(model)
    weight = model.get_parameter(FROZEN)
    density, masks = sparsifier.density, {}
    for step in range(24):
        optimizer.zero_grad()
        weight.requires_grad_(not 6 <= step < 14)
        run(model, optimizer, sparsifier, range(step, step + 1))
        masks[step] = sparsifier.masks[FROZEN].clone()
    assert not torch.equal(masks[3], masks[5])
    assert torch.equal(masks[6], masks[13])
    assert not torch.equal(masks[13], masks[17])
    assert sparsifier.density == density
    born = sum(int(alive.sum()) for alive in sparsifier.masks.values()) - nonzeros(sparsifier)
    assert born == 0  # births of the last update, at step 16, have trained since


@quiet
def test_where_one_layer_trains_its_topology_alone_changes():
    model = vit().requires_grad_(False)
    model.blocks[0].mlp.fc2.requires_grad_(True)
    sparsifier = made("set", model)
    before, optimizer = alive_of(sparsifier), torch.optim.AdamW(model.blocks[0].mlp.fc2.parameters(), lr=0.01)
    sparsifier.attach(optimizer)
    run(model, optimizer, None, SHORT)
    changed = [name for name, alive in sparsifier.masks.items() if not torch.equal(alive, before[name])]
    assert changed == ["blocks.0.mlp.fc2.weight"]


def test_a_resting_unit_of_a_pool_leaves_the_asked_density_to_the_others():
    model = vit()
    model.get_parameter(FROZEN).requires_grad_(False)
    sparsifier, optimizer = made("gmp", model, density=0.25), adamw(model)
    with pytest.warns(UserWarning, match=TOLD):
        run(model, optimizer, sparsifier)
    others = [alive for name, alive in sparsifier.masks.items() if name != FROZEN]
    size, alive = sum(a.numel() for a in others), sum(int(a.sum()) for a in others)
    assert alive == round(0.25 * size)
    assert bool(sparsifier.masks[FROZEN].all())


def test_rest_is_told_once_and_again_where_more_is_frozen():
    model = vit()
    sparsifier, optimizer = made("set", model), adamw(model)
    model.get_parameter(FROZEN).requires_grad_(False)
    with pytest.warns(UserWarning, match=TOLD):
        run(model, optimizer, sparsifier, range(5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(model, optimizer, sparsifier, range(5, 9))
        model.head.weight.requires_grad_(False)
        with pytest.raises(UserWarning, match=r"^head\.weight is frozen"):
            run(model, optimizer, sparsifier, range(9, 13))


@quiet
@pytest.mark.parametrize("method", ["svite", "l1", "s2vite", "group"])
def test_averages_penalties_and_structures_let_the_frozen_rest(method):
    model = vit(depth=2)
    first = model.blocks[0].requires_grad_(False)
    arguments = {"batches": 3} if method == "svite" else {}
    sparsifier, optimizer = made(method, model, **arguments), adamw(model)
    before = {name: weight.clone() for name, weight in first.state_dict().items()}
    for step in range(24):
        optimizer.zero_grad()
        if step == 7:
            model.blocks[1].requires_grad_(False)
        if step == 10:
            model.blocks[1].requires_grad_(True)
        backward(model, step)
        sparsifier.before_step(optimizer)
        optimizer.step()
        sparsifier.after_step()
    assert sparsifier.updates
    assert same(before, dict(first.state_dict()))
