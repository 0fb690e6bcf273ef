"""The sparsifier: counts, optimizer state, resuming, hooks, and what it refuses."""

import copy
import io

import pytest
import timm.optim
import timm.utils
import torch
from tiny import (
    OPTIMIZERS,
    STEPS,
    adamw,
    backward,
    dead_are_zero,
    logits,
    made,
    muon,
    run,
    same,
    sgd,
    train,
    vit,
    weights_of,
)
from torch import nn

from svite import methods
from svite.sparsity.cut import block, element
from svite.sparsity.layers import units
from svite.sparsity.optimizers import ELEMENTWISE, MIXING
from svite.sparsity.pool import together, uniform
from svite.sparsity.rule import DropGrow, Prune
from svite.sparsity.schedule import constant, every, once
from svite.sparsity.score import gradient, magnitude, random
from svite.sparsity.sparsifier import Sparsifier

DYNAMIC = ["set", "rigl", "svite", "srigl", "nm"]
PRUNING = ["snip", "omp", "gmp", "taylor"]


def alive_of(sparsifier: Sparsifier) -> dict[str, torch.Tensor]:
    return {name: alive.clone() for name, alive in sparsifier.masks.items()}


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


# Invariant 2: dead weights, their gradients and their moments


@pytest.mark.parametrize("make", [adamw, sgd], ids=["adamw", "sgd"])
@pytest.mark.parametrize("method", [*DYNAMIC, *PRUNING])
def test_dead_weights_gradients_and_moments_are_zero_after_every_step(method, make):
    model = vit()
    optimizer, sparsifier = make(model), made(method, model)
    for _ in train(model, optimizer, sparsifier):
        for name, weight in sparsifier.weights.items():
            dead = ~sparsifier.masks[name]
            state = [v for v in optimizer.state[weight].values() if v.shape == weight.shape]
            assert state
            assert all(not value[dead].any() for value in [weight, weight.grad, *state]), name


def test_the_born_start_at_zero_with_fresh_moments_and_the_living_keep_theirs():
    model = vit()
    optimizer, sparsifier = adamw(model), made("svite", model)
    run(model, optimizer, sparsifier, range(4))
    backward(model.zero_grad() or model, 4)
    before = {name: mask.clone() for name, mask in sparsifier.masks.items()}
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


def test_calm_births_start_with_the_mean_second_moment_of_the_living():
    model = vit()
    optimizer, sparsifier = adamw(model), made("svite", model)
    sparsifier.calm_births = True
    run(model, optimizer, sparsifier, range(4))
    backward(model.zero_grad() or model, 4)
    before = alive_of(sparsifier)
    sparsifier.before_step(optimizer)
    for name, weight in sparsifier.weights.items():
        born, second = sparsifier.masks[name] & ~before[name], optimizer.state[weight]["exp_avg_sq"]
        stayed = sparsifier.masks[name] & before[name]
        torch.testing.assert_close(second[born], second[stayed][second[stayed] > 0].mean().expand(int(born.sum())))
        assert not optimizer.state[weight]["exp_avg"][born].any()
        assert not second[~sparsifier.masks[name]].any()


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


def optimizers_by_class() -> dict[str, str]:
    """A timm name, or torch's class name, for each optimizer that is said to work."""
    known = sorted(MIXING | ELEMENTWISE)
    found = {}
    for name in timm.optim.list_optimizers(exclude_filters=["bnb*", "fused*"]):
        cls = timm.optim.get_optimizer_class(name, bind_defaults=False).__name__
        if cls in known:
            found.setdefault(cls, name)
    return {cls: found.get(cls, "") for cls in known}


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 6), nn.GELU(), nn.Linear(6, 4))


@torch.compiler.set_stance("force_eager")  # Kron compiles itself, which would take longer than all other tests
@pytest.mark.filterwarnings("ignore:It is highly recommended to have 'opt_einsum'")
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


# Invariant 5: resume


@pytest.mark.parametrize("method", [*DYNAMIC, *PRUNING])
def test_a_run_resumed_from_any_step_is_bit_for_bit_the_uninterrupted_one(method):
    model = vit()
    optimizer, sparsifier = adamw(model), made(method, model)
    saved = []
    for _ in train(model, optimizer, sparsifier, range(16)):
        buffer = io.BytesIO()
        torch.save([model.state_dict(), optimizer.state_dict(), sparsifier.state_dict()], buffer)
        saved.append(buffer.getvalue())
    whole, topology = weights_of(model), sparsifier.summary()
    for step in range(1, 16, 1 if method in ("svite", "taylor") else 5):
        weights, moments, state = torch.load(io.BytesIO(saved[step - 1]), weights_only=True)
        model = vit(seed=1)
        optimizer, sparsifier = adamw(model), made(method, model)
        model.load_state_dict(weights)
        optimizer.load_state_dict(moments)
        sparsifier.load_state_dict(state)
        run(model, optimizer, sparsifier, range(step, 16))
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
    assert steps == [1, 2, 2, 3, 4, 4, 5, 6] if attach or not fused else steps
    assert steps[-1] == 6
    assert [update.step for update in sparsifier.updates] == [2, 4]
    assert sparsifier.density == pytest.approx(0.5, abs=0.02)
    assert dead_are_zero(sparsifier)


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


# attach()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_attach_equals_explicit_calls_bit_for_bit(optimizer):
    explicit, attached = vit(), vit()
    run(explicit, OPTIMIZERS[optimizer](explicit), first := made("svite", explicit))
    second, hooked = made("svite", attached), OPTIMIZERS[optimizer](attached)
    second.attach(hooked)
    run(attached, hooked, None)
    assert same(weights_of(explicit), weights_of(attached))
    assert first.updates == second.updates
    assert second.step == STEPS


def test_attach_works_with_a_closure_that_makes_the_gradients_inside_the_step():
    explicit, attached = vit(), vit()
    run(explicit, adamw(explicit), made("svite", explicit))
    sparsifier, optimizer = made("svite", attached), adamw(attached)
    sparsifier.attach(optimizer)
    for step in range(STEPS):

        def closure(step=step):
            optimizer.zero_grad()
            return backward(attached, step).requires_grad_()

        optimizer.step(closure) if step % 2 else optimizer.step(closure=closure)
    assert same(weights_of(explicit), weights_of(attached))


def test_attached_gradients_are_masked_as_they_accumulate_except_at_updates():
    model = vit()
    sparsifier, optimizer = made("svite", model), adamw(model)
    handle = sparsifier.attach(optimizer)
    for step in range(9):
        optimizer.zero_grad()
        for part in range(2):  # accumulation
            backward(model, 2 * step + part)
        dense = any(weight.grad[~sparsifier.masks[name]].any() for name, weight in sparsifier.weights.items())
        assert dense == (step in (4, 8))
        optimizer.step()
        assert dead_are_zero(sparsifier)
    handle.remove()
    optimizer.zero_grad()
    backward(model, 9)
    assert any(weight.grad[~sparsifier.masks[name]].any() for name, weight in sparsifier.weights.items())
    optimizer.step()
    assert sparsifier.step == 9


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
    assert list(table.columns) == ["unit", "shape", "asked", "achieved", "born", "died", "ever"]
    assert list(table.unit) == list(sparsifier.units)
    assert table["shape"][0] == "16x1x4x4"
    assert (table.born.sum(), table.died.sum()) == (born, died)
    assert born == died == sum(u.born for u in sparsifier.updates) > 0
    assert list(table.ever) == [pytest.approx(float(ever[n].float().mean())) for n in table.unit]
    assert list(table.achieved) == [pytest.approx(float(before[n].float().mean())) for n in table.unit]
    everything = sum(m.numel() for m in ever.values())
    assert sparsifier.itop == sum(int(m.sum()) for m in ever.values()) / everything
    assert sparsifier.updates[-1].alive == sum(int(m.sum()) for m in before.values())


# What is refused


@pytest.mark.parametrize("start", ["exact", "pruned"])
def test_a_layer_that_would_end_empty_is_named(start):
    model = nn.Sequential(nn.Linear(100, 100, bias=False), nn.Linear(2, 1, bias=False))
    model[1].weight.data.fill_(1e-9)
    before = weights_of(model)
    rule = Prune(magnitude) if start == "pruned" else DropGrow(magnitude, random, constant(0.1))
    with pytest.raises(ValueError, match=r"nothing alive in 1\.weight"):
        Sparsifier(model, together(units(model), 0.001), rule, once(0) if start == "pruned" else every(5, until=9))
    assert same(before, weights_of(model))


def test_an_update_without_gradients_is_an_error_that_names_the_weight():
    model = small_model()
    sparsifier = methods.rigl(model, 0.5, 10, interval=1)
    optimizer = adamw(model)
    sparsifier.step = 1
    with pytest.raises(ValueError, match=r"0\.weight has no gradient, which the score 'gradient' needs"):
        sparsifier.before_step(optimizer)


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


def test_the_models_own_names_are_left_as_they_were():
    model = vit()
    names = list(model.state_dict())
    made("svite", model)
    assert list(model.state_dict()) == names
    assert torch.isfinite(logits(model, torch.zeros(1, 1, 12, 12))).all()
