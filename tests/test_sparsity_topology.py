"""The topology of a sparsifier: exact counts at every step, its history, and the copies it is applied to."""

import copy

import pytest
import timm.utils
import torch
from tiny import DYNAMIC, OPTIMIZERS, PRUNING, adamw, alive_of, logits, made, run, same, sgd, train, vit, weights_of
from torch import nn

from svite import methods
from svite.sparsity.layers import units
from svite.sparsity.pool import global_allocation, uniform
from svite.sparsity.rule import DropGrow, Prune
from svite.sparsity.schedule import constant, every, once
from svite.sparsity.score import magnitude, random
from svite.sparsity.sparsifier import Sparsifier

# Invariant 1: exact counts at every step


@pytest.mark.parametrize("method", DYNAMIC)
def test_a_dynamic_method_holds_the_count_of_every_arena_at_every_step(method):
    model = vit()
    sparsifier = made(method, model)
    asked = {unit.name: pool.keep(pool.density) for pool in sparsifier.pools for unit in pool.units}
    for _ in train(model, adamw(model), sparsifier):
        for name, alive in sparsifier.alive.items():
            assert (alive.sum(1) == asked[name]).all(), name
    assert sum(update.born for update in sparsifier.updates) > 0


@pytest.mark.parametrize("method", PRUNING)
def test_a_pruning_method_ends_with_exactly_the_asked_number_and_never_revives(method):
    model = vit()
    sparsifier = made(method, model, 0.3)
    before = alive_of(sparsifier)
    for _ in train(model, adamw(model), sparsifier):
        after = alive_of(sparsifier)
        assert not any((after[name] & ~before[name]).any() for name in after)
        before = after
    prunable = sum(mask.numel() for mask in before.values())
    assert sum(int(mask.sum()) for mask in before.values()) == int(0.3 * prunable + 0.5)
    assert sparsifier.density == pytest.approx(0.3, abs=1 / prunable)


def test_a_pruned_pool_holds_the_rounded_count_of_its_own_density():
    model = nn.Linear(5, 1, bias=False)
    sparsifier = Sparsifier(model, uniform(units(model), 0.1), Prune(magnitude), once(0))
    assert int(sparsifier.masks["weight"].sum()) == 1  # a half is rounded up, as everywhere


def test_the_topology_changes_at_the_steps_that_are_due_and_no_others():
    model = vit()
    sparsifier = made("svite", model)  # until 0.8 * 24 = 19
    changed, before = [], alive_of(sparsifier)
    for step, _ in enumerate(train(model, adamw(model), sparsifier)):
        after = alive_of(sparsifier)
        if not same(before, after):
            changed.append(step)
        before = after
    assert changed == [4, 8, 12, 16]
    assert [update.step for update in sparsifier.updates] == changed


@pytest.mark.parametrize("steps", [2, 3, 5, 10, 24, 100])
def test_gmp_reaches_its_density_in_short_trainings_too(steps):
    model = nn.Linear(8, 8, bias=False)
    sparsifier = methods.gmp(model, 0.25, steps, interval=4)
    optimizer = sgd(model)
    for _ in range(steps):
        model(torch.ones(1, 8)).sum().backward()
        sparsifier.before_step(optimizer)
        optimizer.step()
        sparsifier.after_step()
    assert sparsifier.density == 0.25
    assert sparsifier.updates[-1].step == max(int(0.8 * steps), 1)


def test_scores_are_averaged_over_the_batches_before_an_update():
    model = nn.Linear(3, 1, bias=False)
    model.weight.data = torch.tensor([[1.0, 1.0, 1.0]])
    sparsifier = methods.taylor(model, 1 / 3, 8, batches=3, rounds=1, pool=uniform)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    inputs = [[9.0, 0.0, 0.0], [0.0, 2.0, 1.0], [0.0, 2.0, 1.0], [0.0, 0.0, 2.2]]  # the first is not looked at
    for row in inputs:
        model.zero_grad()
        model(torch.tensor([row])).sum().backward()
        sparsifier.before_step(optimizer)
        optimizer.step()
        sparsifier.after_step()
    assert sparsifier.masks["weight"].tolist() == [[False, True, False]]  # 8/3 against 2.28


def test_the_topology_does_not_depend_on_the_global_random_state():
    drawn = []
    for state in (1, 2):
        model = vit()
        torch.manual_seed(state)
        drawn.append(alive_of(made("set", model, seed=3)))
    assert same(*drawn)
    assert not same(drawn[0], alive_of(made("set", vit(), seed=4)))


def test_the_summary_and_the_history_count_what_happened():
    model = vit()
    sparsifier = made("set", model)
    ever = alive_of(sparsifier)
    born = died = 0
    before = ever
    for _ in train(model, adamw(model), sparsifier):
        after = alive_of(sparsifier)
        born += sum(int((after[n] & ~before[n]).sum()) for n in after)
        died += sum(int((before[n] & ~after[n]).sum()) for n in after)
        ever = {n: ever[n] | after[n] for n in after}
        before = after
    table = sparsifier.summary()
    assert list(table.columns) == ["unit", "shape", "target", "achieved", "born", "died", "ever"]
    assert list(table.unit[table.target.isna()]) == ["cls_token", "pos_embed"]  # which no unit holds
    table = table.dropna()
    assert list(table.unit) == list(sparsifier.units)
    assert table["shape"][0] == "16x1x4x4"
    assert (table.born.sum(), table.died.sum()) == (born, died)
    assert born == died == sum(u.born for u in sparsifier.updates) > 0
    assert list(table.ever) == [pytest.approx(float(ever[n].float().mean())) for n in table.unit]
    assert list(table.achieved) == [pytest.approx(float(before[n].float().mean())) for n in table.unit]
    everything = sum(m.numel() for m in ever.values())
    assert sparsifier.itop == sum(int(m.sum()) for m in ever.values()) / everything
    assert sparsifier.updates[-1].alive == sum(int(m.sum()) for m in before.values())


@pytest.mark.parametrize("start", ["exact", "pruned"])
def test_a_layer_that_would_end_empty_is_named(start):
    model = nn.Sequential(nn.Linear(100, 100, bias=False), nn.Linear(2, 1, bias=False))
    model[1].weight.data.fill_(1e-9)
    before = weights_of(model)
    rule = Prune(magnitude) if start == "pruned" else DropGrow(magnitude, random, constant(0.1))
    with pytest.raises(ValueError, match=r"nothing alive in 1\.weight"):
        Sparsifier(
            model, global_allocation(units(model), 0.001), rule, once(0) if start == "pruned" else every(5, until=9)
        )
    assert same(before, weights_of(model))


# Invariant 7: density one


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("method", ["svite", "nm", "gmp", "taylor"])
def test_density_one_is_bit_for_bit_the_dense_run(method, optimizer):
    dense, sparse = vit(), vit()
    run(dense, OPTIMIZERS[optimizer](dense), None, range(14))
    sparsifier = made(method, sparse, 1.0)
    run(sparse, OPTIMIZERS[optimizer](sparse), sparsifier, range(14))
    assert len(sparsifier.updates) >= 3
    assert same(weights_of(dense), weights_of(sparse))


# Copies and names


def test_an_ema_becomes_as_sparse_as_the_model():
    model = vit()
    sparsifier, optimizer = made("set", model), adamw(model)
    ema = timm.utils.ModelEmaV3(model, decay=0.5)
    for _ in train(model, optimizer, sparsifier, range(9)):
        ema.update(model)
    averaged = dict(ema.module.named_parameters())
    dead = {name: ~mask for name, mask in sparsifier.masks.items()}
    assert any(averaged[name][dead[name]].any() for name in dead)
    before = weights_of(ema.module)
    sparsifier.apply(ema)
    assert not any(averaged[name][dead[name]].any() for name in dead)
    assert all(torch.equal(averaged[name][~dead[name]], before[name][~dead[name]]) for name in dead)


def test_apply_to_another_model_is_refused_and_changes_nothing():
    sparsifier, other = made("svite", vit()), vit(num_classes=7)
    before = weights_of(other)
    with pytest.raises(ValueError, match=r"no head\.weight of shape \(5, 16\)"):
        sparsifier.apply(other)
    assert same(before, weights_of(other))


def test_a_compiled_model_has_the_same_names_and_topology():
    model = vit()
    compiled = torch.compile(copy.deepcopy(model), backend="eager")
    first, second = made("svite", model), made("svite", compiled)
    assert list(first.masks) == list(second.masks)
    assert same(alive_of(first), alive_of(second))


def test_the_models_own_names_are_left_as_they_were():
    model = vit()
    names = list(model.state_dict())
    made("svite", model)
    assert list(model.state_dict()) == names
    assert torch.isfinite(logits(model, torch.zeros(1, 1, 12, 12))).all()
