"""Dead weights, their gradients and their moments are zero, whatever the optimizer; what is born starts afresh."""

import pytest
import timm.optim
import torch
from tiny import (
    DYNAMIC,
    PRUNING,
    SHORT,
    adamw,
    alive_of,
    backward,
    dead_are_zero,
    made,
    muon,
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
from svite.sparsity.layers import units
from svite.sparsity.optimizers import ELEMENTWISE, MIXING
from svite.sparsity.pool import uniform
from svite.sparsity.rule import DropGrow
from svite.sparsity.schedule import constant, every
from svite.sparsity.score import gradient, magnitude
from svite.sparsity.sparsifier import Sparsifier

# Invariant 2: dead weights, their gradients and their moments


@pytest.mark.parametrize("make", [adamw, sgd], ids=["adamw", "sgd"])
@pytest.mark.parametrize("method", [*DYNAMIC, *PRUNING])
def test_dead_weights_gradients_and_moments_are_zero_after_every_step(method, make):
    model = vit()
    optimizer, sparsifier = make(model), made(method, model)
    for _ in train(model, optimizer, sparsifier, SHORT):
        for name, weight in sparsifier.weights.items():
            dead = ~sparsifier.masks[name]
            state = [v for v in optimizer.state[weight].values() if v.shape == weight.shape]
            assert state
            assert all(not value[dead].any() for value in [weight, weight.grad, *state]), name


def optimizers_by_class() -> dict[str, str]:
    """A timm name, or torch's class name, for each optimizer that is said to work."""
    known = sorted(MIXING | ELEMENTWISE)
    found = {}
    for name in timm.optim.list_optimizers(exclude_filters=["bnb*", "fused*"]):
        cls = timm.optim.get_optimizer_class(name, bind_defaults=False).__name__
        if cls in known and not (timm.optim.get_optimizer_info(name).defaults or {}).get("caution"):
            found.setdefault(cls, name)
    return {cls: found.get(cls, "") for cls in known}


@torch.compiler.set_stance("force_eager")  # Kron compiles itself, which would take longer than all other tests
@pytest.mark.filterwarnings("ignore:It is highly recommended to have 'opt_einsum'")
@pytest.mark.filterwarnings("ignore:Adafactor.* keeps second moments by row and column")
@pytest.mark.parametrize(("cls", "name"), optimizers_by_class().items())
def test_every_optimizer_said_to_work_keeps_the_dead_at_zero_for_20_steps(cls, name):
    model = small_model()
    optimizer = timm.optim.create_optimizer_v2(model, opt=name, lr=1e-2, weight_decay=0.05)
    assert type(optimizer).__name__ == cls
    sparsifier = Sparsifier(
        model, uniform(units(model), 0.5), DropGrow(magnitude, gradient, constant(0.3)), every(3, until=20)
    )
    start = weights_of(model)
    for step in range(20):
        optimizer.zero_grad()
        model(torch.randn(4, 8, generator=torch.Generator().manual_seed(step))).square().mean().backward()
        sparsifier.before_step(optimizer)
        optimizer.step()
        sparsifier.after_step()
        assert dead_are_zero(sparsifier)
        for key, weight in sparsifier.weights.items() if cls in ELEMENTWISE else ():
            state = optimizer.state[weight].values()
            moments = [v for v in state if isinstance(v, torch.Tensor) and v.shape == weight.shape]
            assert all(float(v[~sparsifier.masks[key]].abs().max()) <= 1.01e-8 for v in moments)
    assert sum(update.born for update in sparsifier.updates) > 0
    assert not same(start, weights_of(model))
    assert all(bool(p.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize("attach", [False, True], ids=["calls", "attach"])
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("LBFGS", lambda m: torch.optim.LBFGS(m.parameters())),
        ("MADGRAD", lambda m: timm.optim.create_optimizer_v2(m, opt="madgrad", lr=0.1)),
        ("RMSpropTF", lambda m: timm.optim.create_optimizer_v2(m, opt="rmsproptf", lr=0.1)),
    ],
)
def test_an_unknown_optimizer_is_refused_by_name_and_nothing_changes(name, make, attach):
    model = small_model()
    sparsifier = methods.set(model, 0.5, 10)
    optimizer = make(model)
    model(torch.ones(2, 8)).sum().backward()
    before, gradients = weights_of(model), [p.grad.clone() for p in model.parameters()]
    with pytest.raises(ValueError, match=f"^{name} is not known"):
        sparsifier.attach(optimizer) if attach else sparsifier.before_step(optimizer)
    assert same(before, weights_of(model))
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


# Births


def test_the_born_start_at_zero_with_fresh_moments_and_the_living_keep_theirs():
    model = vit()
    optimizer, sparsifier = adamw(model), made("svite", model)
    run(model, optimizer, sparsifier, range(4))
    backward(model.zero_grad() or model, 4)
    before = alive_of(sparsifier)
    value = {name: weight.detach().clone() for name, weight in sparsifier.weights.items()}
    moment = {name: optimizer.state[weight]["exp_avg"].clone() for name, weight in sparsifier.weights.items()}
    sparsifier.before_step(optimizer)
    births = 0
    for name, weight in sparsifier.weights.items():
        after = sparsifier.masks[name]
        born, stayed = after & ~before[name], after & before[name]
        now = optimizer.state[weight]["exp_avg"]
        assert not weight[born].any()
        assert not now[born].any()
        assert torch.equal(weight[stayed], value[name][stayed])
        assert torch.equal(now[stayed], moment[name][stayed])
        assert not now[~after].any()
        births += int(born.sum())
    assert births > 0


def regrowing() -> tuple[nn.Linear, torch.optim.Optimizer, Sparsifier]:
    """Four weights, two alive; at step 1 the smaller is dropped and has the largest gradient, so it grows again."""
    model = nn.Linear(4, 1, bias=False)
    model.weight.data = torch.tensor([[3.0, 0.5, 0.0, 0.0]])
    rule = DropGrow(
        magnitude, gradient, constant(0.5), start=lambda random, pool: torch.tensor([[True, True, False, False]])
    )
    return model, adamw(model), Sparsifier(model, uniform(units(model), 0.5), rule, every(1, until=10))


def test_what_is_dropped_and_regrown_in_one_update_was_alive_throughout():
    model, optimizer, sparsifier = regrowing()
    for inputs in ([1.0, 1.0, 1.0, 1.0], [0.0, 9.0, 1.0, 1.0]):
        model.zero_grad()
        model(torch.tensor([inputs])).sum().backward()
        before = model.weight.detach().clone()
        sparsifier.before_step(optimizer)
        assert torch.equal(model.weight, before)
        kept = {k: v.clone() for k, v in optimizer.state.get(model.weight, {}).items()}
        if kept:
            assert kept["exp_avg"][0, 1] != 0
        optimizer.step()
        sparsifier.after_step()
    assert sparsifier.masks["weight"].tolist() == [[True, True, False, False]]
    assert (sparsifier.updates[0].born, sparsifier.updates[0].died) == (0, 0)
    assert float(sparsifier.history.itop) == 0.5


def test_a_newborn_weight_of_value_zero_is_alive():
    model, optimizer, sparsifier = regrowing()
    for inputs in ([1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 9.0, 1.0]):
        model.zero_grad()
        model(torch.tensor([inputs])).sum().backward()
        sparsifier.before_step(optimizer)
        if sparsifier.step == 1:
            assert model.weight[0, 2] == 0
        if sparsifier.step == 0:
            optimizer.step()
        sparsifier.after_step()
    assert sparsifier.masks["weight"].tolist() == [[True, False, True, False]]
    assert sparsifier.density == 0.5


def test_muon_gets_the_dense_gradient_and_births_reset_its_buffer():
    model = vit()
    optimizer, sparsifier = muon(model), made("set", model)
    run(model, optimizer, sparsifier, range(4))
    backward(model.zero_grad() or model, 4)
    name = "blocks.0.attn.qkv.weight"
    weight, before = sparsifier.weights[name], sparsifier.masks[name].clone()
    buffer = optimizer.state[weight]["momentum_buffer"]
    dead_before, kept = buffer[~before].abs().sum(), buffer.clone()
    dense = weight.grad.clone()
    sparsifier.before_step(optimizer)
    after = sparsifier.masks[name]
    born = after & ~before
    assert dead_before > 0
    assert torch.equal(weight.grad, dense)
    assert born.any()
    assert not buffer[born].any()
    assert torch.equal(buffer[~born], kept[~born])
    optimizer.step()
    sparsifier.after_step()
    assert dead_are_zero(sparsifier)
