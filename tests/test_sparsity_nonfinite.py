"""What is infinite or not a number: silenced where it is dead, refused where a topology would be chosen from it."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from tiny import adamw, alive_of, backward, dead_are_zero, made, muon, same, sgd, train, vit, weights_of

from svite import methods
from svite.sparsity.layers import units
from svite.sparsity.mask import apply_mask
from svite.sparsity.optimizers import reset_optimizer_state
from svite.sparsity.pool import global_allocation
from svite.sparsity.rule import Prune
from svite.sparsity.schedule import once
from svite.sparsity.sparsifier import Sparsifier

ODD = [math.inf, -math.inf, math.nan, -0.0, 0.0, -1.0, 1e-40, 3e38]
KINDS = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(ODD), st.booleans()), max_size=40), st.sampled_from(KINDS), st.booleans())
def test_the_dead_become_plus_zero_and_the_living_keep_every_bit(entries, kind, strided):
    values = torch.tensor([value for value, _ in entries]).to(kind)
    alive = torch.tensor([lives for _, lives in entries], dtype=torch.bool)
    if strided:
        values, alive = values.repeat(3, 1).t()[:, 1], alive.repeat(2, 1).t()[:, 1]
    before, bits = values.clone(), {2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()]
    apply_mask(values, alive)
    assert torch.equal(values.view(bits), torch.where(alive, before.view(bits), 0))


@pytest.mark.parametrize("make", [adamw, sgd, muon])
def test_an_infinite_dead_weight_becomes_zero_and_the_run_goes_on(make):
    model = vit()
    sparsifier, optimizer = made("set", model), make(model)
    for step, loss in enumerate(train(model, optimizer, sparsifier)):
        assert math.isfinite(loss), step
        assert dead_are_zero(sparsifier)
        with torch.no_grad():
            for name, weight in sparsifier.weights.items():
                weight.masked_fill_(~sparsifier.masks[name], math.inf)
        sparsifier.apply(model)


@pytest.mark.parametrize("poison", [math.inf, -math.inf, math.nan])
def test_a_poisoned_dead_gradient_or_moment_reaches_no_weight(poison):
    model = vit()
    sparsifier, optimizer = made("set", model), adamw(model)
    for _ in train(model, optimizer, sparsifier, range(2)):
        pass
    backward(model)
    for name, weight in sparsifier.weights.items():
        dead = ~sparsifier.masks[name]
        weight.grad.masked_fill_(dead, poison)
        optimizer.state[weight]["exp_avg"].masked_fill_(dead, poison)
    sparsifier.before_step(optimizer)
    reset_optimizer_state([optimizer], {weight: sparsifier.masks[name] for name, weight in sparsifier.weights.items()})
    optimizer.step()
    sparsifier.after_step()
    assert dead_are_zero(sparsifier)
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())


@pytest.mark.parametrize("method", ["omp", "snip"])
@pytest.mark.parametrize("poison", [math.inf, math.nan])
def test_a_topology_is_not_chosen_from_weights_that_are_not_finite(method, poison):
    model = vit()
    backward(model)
    with torch.no_grad():
        model.blocks[0].mlp.fc1.weight[1, 2] = poison
    before = weights_of(model)
    with pytest.raises(ValueError, match=r"^blocks\.0\.mlp\.fc1\.weight holds NaN or infinite values"):
        getattr(methods, method)(model, 0.5)
    assert {name: value.tolist() for name, value in before.items() if not value.isnan().any()} == {
        name: value.tolist() for name, value in weights_of(model).items() if not value.isnan().any()
    }


def test_an_update_by_weights_that_are_not_finite_names_the_weight_and_changes_no_topology():
    model = vit()
    sparsifier, optimizer = made("set", model), adamw(model)
    for _ in train(model, optimizer, sparsifier, range(4)):
        pass
    backward(model)
    with torch.no_grad():
        model.head.weight[sparsifier.masks["head.weight"]] = math.inf
    before = alive_of(sparsifier)
    with pytest.raises(ValueError, match=r"^head\.weight holds NaN"):
        sparsifier.before_step(optimizer)
    assert same(before, alive_of(sparsifier))


def test_a_score_that_is_not_a_number_names_its_unit():
    def undefined(seen):
        return seen.weight / 0 * 0

    with pytest.raises(ValueError, match=r"The score 'undefined' is NaN for members of patch_embed\.proj\.weight"):
        Sparsifier(model := vit(), global_allocation(units(model), 0.5), Prune(undefined), once(0))


def test_weights_whose_sum_overflows_are_finite_all_the_same():
    model = torch.nn.Linear(64, 64, bias=False).half()
    with torch.no_grad():
        model.weight.copy_(torch.linspace(5e4, 6e4, 64 * 64).view(64, 64))
    assert methods.omp(model, 0.5).density == 0.5
