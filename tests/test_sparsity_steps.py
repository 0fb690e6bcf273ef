"""Which steps count: after a resume, without finite gradients, through a scaler, a closure or a hook."""

import io

import pytest
import torch
from tiny import (
    DYNAMIC,
    PRUNING,
    SHORT,
    STEPS,
    adamw,
    alive_of,
    backward,
    dead_are_zero,
    made,
    run,
    same,
    sgd,
    small_model,
    train,
    vit,
    weights_of,
)
from torch import nn

from svite import methods
from svite.sparsity.cut import block, element
from svite.sparsity.layers import units
from svite.sparsity.pool import uniform
from svite.sparsity.rule import DropGrow, Prune
from svite.sparsity.schedule import constant, every, once
from svite.sparsity.score import magnitude, random
from svite.sparsity.sparsifier import Sparsifier

# Invariant 5: resume


@pytest.mark.parametrize("method", [*DYNAMIC, *PRUNING])
def test_a_run_resumed_from_any_step_is_bit_for_bit_the_uninterrupted_one(method):
    model = vit()
    optimizer, sparsifier = adamw(model), made(method, model)
    saved = []
    for _ in train(model, optimizer, sparsifier, SHORT):
        buffer = io.BytesIO()
        torch.save([model.state_dict(), optimizer.state_dict(), sparsifier.state_dict()], buffer)
        saved.append(buffer.getvalue())
    whole, topology = weights_of(model), sparsifier.summary()
    for step in range(1, len(SHORT), 1 if method in ("svite", "taylor") else 5):
        weights, moments, state = torch.load(io.BytesIO(saved[step - 1]), weights_only=True)
        model = vit(seed=1)
        optimizer, sparsifier = adamw(model), made(method, model)
        model.load_state_dict(weights)
        optimizer.load_state_dict(moments)
        sparsifier.load_state_dict(state)
        run(model, optimizer, sparsifier, SHORT[step:])
        assert same(whole, weights_of(model)), step
        assert sparsifier.summary().equals(topology), step


def test_another_models_topology_is_refused_by_unit_and_nothing_changes():
    model, other = vit(), vit(embed_dim=24)
    sparsifier = made("svite", model)
    before, topology = weights_of(model), alive_of(sparsifier)
    with pytest.raises(ValueError, match=r"blocks\.0\.attn\.qkv\.weight.* differ"):
        sparsifier.load_state_dict(made("svite", other).state_dict())
    assert same(before, weights_of(model))
    assert same(topology, alive_of(sparsifier))
    assert sparsifier.step == 0


def test_the_same_weights_cut_another_way_are_another_model():
    model = nn.Linear(8, 8)
    one, other = (
        Sparsifier(model, uniform(units(model, cut=cut), 0.5), Prune(magnitude), once(0))
        for cut in (element(), block(2, 2))
    )
    with pytest.raises(ValueError, match="weight differ"):
        one.load_state_dict(other.state_dict())


# Invariant 6: gradients that are not finite


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("method", ["svite", "set", "gmp", "taylor"])
def test_an_update_waits_for_the_next_finite_gradient(method, poison):
    model = vit()
    optimizer, sparsifier = sgd(model), made(method, model)
    due = [step for step in range(1, STEPS) if sparsifier.when(step)]
    first = due[1]
    run(model, optimizer, sparsifier, range(first))
    before, done = alive_of(sparsifier), len(sparsifier.updates)
    backward(model.zero_grad() or model, first)
    sparsifier.weights["head.weight"].grad[0, 0] = poison
    sparsifier.before_step(optimizer)
    assert same(before, alive_of(sparsifier))
    sparsifier._stepped = True  # the optimizer is left out, for it would poison the model
    sparsifier.after_step()
    assert sparsifier.step == first + 1
    run(model, optimizer, sparsifier, range(first + 1, due[2] + 1))
    assert [update.step for update in sparsifier.updates[done:]] == [first + 1, due[2]]
    assert not same(before, alive_of(sparsifier))


def test_an_update_that_waits_is_still_waited_for_after_a_resume():
    first, second = vit(), vit()
    sparsifier = made("svite", first)
    sparsifier.step = 4
    backward(first)
    sparsifier.weights["head.weight"].grad[0, 0] = torch.nan
    sparsifier.before_step(sgd(first))
    sparsifier.step = 5
    resumed = made("svite", second)
    assert not resumed.update_due
    resumed.load_state_dict(sparsifier.state_dict())
    assert resumed.update_due
    run(second, sgd(second), resumed, range(5, 6))
    assert [update.step for update in resumed.updates] == [5]


def test_snip_does_not_look_at_gradients_that_are_not_finite():
    model = small_model()
    before = weights_of(model)
    model(torch.ones(2, 8)).sum().backward()
    model[0].weight.grad[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"0\.weight has no finite gradient"):
        methods.snip(model, 0.5)
    assert same(before, weights_of(model))


def test_an_update_without_gradients_is_an_error_that_names_the_weight():
    model = small_model()
    sparsifier = methods.rigl(model, 0.5, 10, interval=1)
    optimizer = adamw(model)
    sparsifier.step = 1
    with pytest.raises(ValueError, match=r"0\.weight has no gradient, which the score 'gradient' needs"):
        sparsifier.before_step(optimizer)


# Gradient scalers


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("attach", [False, True], ids=["calls", "attach"])
def test_a_step_that_a_gradient_scaler_skips_does_not_count(attach, fused):
    model = small_model()
    sparsifier = Sparsifier(
        model, uniform(units(model), 0.5), DropGrow(magnitude, random, constant(0.5)), every(2, until=9)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    if attach:
        sparsifier.attach(optimizer)
    steps = []
    for step in range(8):
        optimizer.zero_grad()
        scaler.scale(model(torch.full((2, 8), step + 1.0)).square().mean()).backward()
        if step in (2, 5):  # one on a bias, which no mask sees, at an update; one on a weight, between updates
            (model[0].bias if step == 2 else model[2].weight).grad.view(-1)[0] = torch.inf
        scaler.unscale_(optimizer)
        if not attach:
            sparsifier.before_step(optimizer)
        scaler.step(optimizer)
        if not attach:
            sparsifier.after_step()
        scaler.update()
        steps.append(sparsifier.step)
    assert steps == [1, 2, 2, 3, 4, 4, 5, 6]
    assert [update.step for update in sparsifier.updates] == [2, 4]
    assert sparsifier.density == pytest.approx(0.5, abs=0.02)
    assert dead_are_zero(sparsifier)


def test_a_sparsifier_works_through_accelerates_optimizer():
    plain, prepared = small_model(), small_model()
    for model, wrap in ((plain, lambda o: o), (prepared, lambda o: __import__("accelerate").Accelerator().prepare(o))):
        sparsifier, optimizer = methods.svite(model, 0.5, 10, interval=2), wrap(adamw(model))
        for step in range(6):
            optimizer.zero_grad()
            model(torch.full((2, 8), step + 1.0)).square().mean().backward()
            sparsifier.before_step(optimizer)
            optimizer.step()
            sparsifier.after_step()
        assert sparsifier.step == 6
    assert same(weights_of(plain), weights_of(prepared))
