"""Penalties: the proximal step, who dies of it, and the cut at its end."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import OPTIMIZERS, STEPS, adamw, same, train, vit, weights_of

import svite
from svite import methods
from svite.sparsity.cut import Part, Unit, element
from svite.sparsity.penalty import Penalty
from svite.sparsity.pool import Pool
from svite.sparsity.schedule import constant
from svite.vit.branches import add_scales, branches
from svite.vit.shrink import shrink

METHODS = ("l1", "group", "layer")
DEEP = {"depth": 2, "num_heads": 4, "mlp_ratio": 2.0}


def counts(sparsifier) -> dict[str, int]:
    return {name: int(alive.sum()) for name, alive in sparsifier.alive.items()}


# ---- the step -----------------------------------------------------------------------------------


@given(
    st.lists(st.floats(0, 4, width=32), min_size=1, max_size=6),
    st.integers(1, 9),
    st.floats(0, 1, width=32),
    st.floats(0, 1, width=32, exclude_min=True),
)
@settings(deadline=None)
def test_the_factor_is_the_proximal_operator_of_the_group_lasso(norms, size, rate, strength):
    """It minimises |x - w|^2 / 2 + rate strength sqrt(size) |x| over the multiples x of w, found by search."""
    found = Penalty(constant(strength), 10).proximal(torch.tensor([norms]), size, rate, 3)[0]
    factors = torch.linspace(0, 1, 2001, dtype=torch.float64)
    for norm, factor in zip(norms, found.tolist(), strict=True):
        objective = ((factors - 1) * norm) ** 2 / 2 + rate * strength * size**0.5 * factors * norm
        best = float(factors[objective.argmin()])
        assert 0 <= factor <= 1
        assert factor * norm == pytest.approx(best * norm, abs=4e-3)


def test_single_weights_are_soft_thresholded():
    model = vit()
    sparsifier = methods.l1(model, 0.5, 100, strength=0.5, interval=50)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    before = {name: weight.detach().clone() for name, weight in sparsifier.weights.items()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    sparsifier.before_step(optimizer)
    optimizer.step()
    sparsifier.after_step()
    for name, weight in sparsifier.weights.items():
        expected = before[name].sign() * (before[name].abs() - 0.01).clamp(min=0)
        assert torch.allclose(weight, expected, atol=1e-7)


def test_after_the_last_cut_nobody_is_pulled():
    assert Penalty(constant(0.5), last=10).proximal(torch.ones(1, 3), 4, 0.1, 10) is None


def test_no_strength_is_bit_for_bit_the_dense_run_until_the_cut():
    model, dense = vit(**DEEP), vit(**DEEP)
    sparsifier = methods.group(model, 0.5, STEPS, strength=0.0, until=0.5)
    list(train(model, adamw(model), sparsifier, range(STEPS // 2)))
    list(train(dense, adamw(dense), None, range(STEPS // 2)))
    assert same(weights_of(model), weights_of(dense))


@pytest.mark.parametrize("method", ["l1", "group"])
def test_a_density_of_one_is_bit_for_bit_the_dense_run(method):
    model, dense = vit(**DEEP), vit(**DEEP)
    list(train(model, adamw(model), getattr(methods, method)(model, 1.0, STEPS, interval=4)))
    list(train(dense, adamw(dense), None))
    assert same(weights_of(model), weights_of(dense))


# ---- who lives ----------------------------------------------------------------------------------


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=2, max_size=12), st.data())
@settings(deadline=None)
def test_the_weak_die_early_but_never_below_the_density(scores, data):
    members = len(scores)
    alive = torch.tensor([data.draw(st.lists(st.booleans(), min_size=members, max_size=members))])
    pool = Pool((Unit("w", (Part("w", element()),), torch.Size((1, members)), 1, members),), 0.5)
    values, rule = torch.tensor([scores]), Penalty(constant(0.1), last=9)
    early, late = rule.select(pool, alive, [values], 5), rule.select(pool, alive, [values], 9)
    keep = min(pool.keep(0.5), int(alive.sum()))
    assert not (early & ~alive).any()
    assert not (late & ~early).any()
    assert int(late.sum()) == keep
    assert int(early.sum()) == max(keep, int((alive & (values > 0)).sum()))


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
@pytest.mark.parametrize("method", METHODS)
def test_a_penalty_ends_at_the_asked_density_and_the_dead_stay_dead(method, optimizer):
    model = vit(**DEEP)
    sparsifier = getattr(methods, method)(model, 0.5, STEPS, interval=4, strength=1.0)
    made, before = OPTIMIZERS[optimizer](model), counts(sparsifier)
    for _ in train(model, made, sparsifier):
        now = counts(sparsifier)
        assert all(now[name] <= before[name] for name in now)
        assert not any(sparsifier.weights[name][~mask].any() for name, mask in sparsifier.masks.items())
        before = now
    assert sum(before.values()) == sum(unit.size for unit in sparsifier.units.values()) / 2


def test_members_die_before_the_cut_by_the_pull_alone():
    model = vit(**DEEP)
    sparsifier = methods.group(model, 0.25, 60, interval=5, strength=3.0)
    list(train(model, adamw(model), sparsifier, range(60)))
    died = [update.died for update in sparsifier.updates]
    assert sum(died[:-1]) > 20


def test_a_resumed_run_is_bit_for_bit_the_uninterrupted_one():
    def fresh():
        model = vit(**DEEP)
        sparsifier = methods.group(model, 0.5, STEPS, interval=3, strength=1.0)
        return model, adamw(model), sparsifier

    whole, first, second = fresh(), fresh(), fresh()
    list(train(*whole))
    list(train(*first, range(7)))
    second[0].load_state_dict(first[0].state_dict())
    second[1].load_state_dict(copy.deepcopy(first[1].state_dict()))
    second[2].load_state_dict(first[2].state_dict())
    list(train(*second, range(7, STEPS)))
    assert same(weights_of(whole[0]), weights_of(second[0]))


# ---- branches -----------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [{}, {"init_values": 1e-1}])
def test_a_dead_branch_is_one_whose_layer_scale_is_zero_and_shrink_removes_it(arguments):
    model = vit(**(DEEP | arguments))
    sparsifier = methods.layer(model, 0.5, STEPS, interval=4)
    list(train(model, adamw(model), sparsifier))
    images = torch.randn(3, 1, 12, 12)
    small = shrink(model, sparsifier, branches=True)
    svite.verify(model, small, images)
    dead = [name for name, alive in sparsifier.alive.items() if not alive.any()]
    assert len(dead) == 2
    assert all(type(small.get_submodule(name)).__name__ == "Zero" for name in dead)


def test_a_layer_scale_of_one_changes_nothing():
    model = vit(**DEEP).eval()
    images = torch.randn(3, 1, 12, 12)
    before = model(images)
    assert [unit.name for unit in branches(model, ["blocks.1.*"])] == ["blocks.1.attn", "blocks.1.mlp"]
    add_scales(model, ["blocks.1.*"])
    assert "blocks.1.ls1.gamma" in model.state_dict()
    assert "blocks.0.ls1.gamma" not in model.state_dict()
    assert torch.equal(model(images), before)


# ---- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"strength": -1}, r"strength is -1; it must be a number, and not below 0\."),
        ({"strength": float("inf")}, "strength is inf"),
        ({"density": 0}, "density is 0"),
        ({"until": 1.0}, "`until` is 1.0 of 24 steps; the penalty must end between the first and the last"),
        ({"until": 0.0}, "`until` is 0.0"),
        ({"steps": 1}, "of 1 steps"),
    ],
)
@pytest.mark.parametrize("method", METHODS)
def test_what_makes_no_sense_is_refused_and_changes_nothing(method, arguments, complaint):
    model = vit(**DEEP)
    before = weights_of(model)
    with pytest.raises(ValueError, match=complaint):
        getattr(methods, method)(model, **({"density": 0.5, "steps": STEPS} | arguments))
    assert same(weights_of(model), before)


def test_branches_are_found_by_name_or_refused():
    with pytest.raises(ValueError, match="Linear has no timm Block, so there are no branches to prune"):
        branches(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"No prunable layer is called blocks\.9\.mlp"):
        branches(vit(**DEEP), ["blocks.9.mlp"])
    with pytest.raises(ValueError, match=r"A density of 0\.05 leaves none of 4 members alive"):
        methods.layer(vit(**DEEP), 0.05, STEPS)


def test_the_old_home_of_penalties_still_works():
    with pytest.warns(DeprecationWarning, match=r"^svite\.penalty is svite\.methods now\.$"):
        assert svite.penalty is methods
