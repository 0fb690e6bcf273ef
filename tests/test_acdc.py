"""AC/DC: phases in turn, each against a top-k in plain loops, and what grows back."""

from itertools import pairwise

import pytest
import torch
from tiny import STEPS, adamw, made, same, train, vit, weights_of

from svite import methods
from svite.sparsity.pool import uniform


def compressed(steps: int, **arguments: object) -> list[bool]:
    """Step by step, whether a training of so many is in a pruned phase."""
    sparsifier = methods.acdc(torch.nn.Linear(8, 8, bias=False), 0.25, steps, **arguments)
    dense, densities = True, []
    for step in range(1, steps + 1):
        if sparsifier.when(step):
            dense = sparsifier.rules[0].ramp(step) == 0
        densities.append(not dense)
    return densities


def test_phases_alternate_between_their_shares_of_training_and_end_pruned():
    pruned = compressed(100, rounds=3, begin=0.2, until=0.8)
    assert pruned == [False] * 19 + [True] * 15 + [False] * 15 + [True] * 15 + [False] * 15 + [True] * 21
    assert compressed(20, rounds=1, until=0.5) == [False] * 9 + [True] * 11
    assert compressed(10, begin=0.5, until=0.5) == [False] * 4 + [True] * 6


def test_the_defaults_have_the_papers_share_of_pruned_training():
    pruned = compressed(1000)
    assert sum(before != after for before, after in pairwise(pruned)) == 15
    assert pruned[-151:] == [True] * 151
    assert not any(pruned[:99])


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 7, 10])
def test_with_few_steps_there_are_fewer_rounds_and_the_last_is_pruned(steps):
    pruned = compressed(steps)
    assert pruned[-1]
    assert sum(pruned) <= steps


def test_a_pruned_phase_keeps_the_largest_weights_of_the_whole_model_and_a_dense_one_all():
    model = vit()
    sparsifier = made("acdc", model, 0.3)
    weights, seen = sparsifier.weights, []
    losses = train(model, adamw(model), sparsifier)
    before = weights_of(model)
    for step, _ in enumerate(losses):
        (changed,) = [update for update in sparsifier.updates if update.step == step] or [None]
        if changed:
            every = sorted((float(w) for name in weights for w in before[name].abs().flatten()), reverse=True)
            keep = round(0.3 * len(every)) if changed.density < 1 else len(every)
            for name, mask in sparsifier.masks.items():
                assert torch.equal(mask, (before[name].abs() >= every[keep - 1]) | (keep == len(every)))
            seen.append(changed.density < 1)
            alive = {name: mask.clone() for name, mask in sparsifier.masks.items()}
        elif seen:
            assert same(alive, sparsifier.masks)
        before = weights_of(model)
    assert seen == [True, False, True, False, True]
    assert sparsifier.density == pytest.approx(0.3, abs=1e-3)
    assert sparsifier.itop == 1.0


def test_what_grows_back_begins_at_zero_with_a_fresh_state():
    model = vit()
    optimizer, sparsifier = adamw(model), made("acdc", model, 0.3)
    losses, dead = train(model, optimizer, sparsifier), {}
    for _ in losses:
        if sparsifier.density == 1 and dead:
            break
        dead = {name: ~mask for name, mask in sparsifier.masks.items()} if sparsifier.density < 1 else {}
    assert sparsifier.step == 7
    for name, weight in sparsifier.weights.items():
        moments, squares = (optimizer.state[weight][key] for key in ("exp_avg", "exp_avg_sq"))
        born = dead[name] & (weight.grad != 0)
        gradients = weight.grad[born]
        assert torch.allclose(moments[born], 0.1 * gradients)  # one step old
        assert torch.allclose(squares[born], 0.001 * gradients.square())
        assert (weight.detach()[born].abs() < 0.1).all()
        assert born.any()


def test_each_layer_can_have_its_density():
    sparsifier = methods.acdc(model := vit(), 0.5, STEPS, rounds=1, until=0.1, pool=uniform)
    list(train(model, adamw(model), sparsifier, range(5)))
    assert [float(mask.float().mean()) for mask in sparsifier.masks.values()] == pytest.approx([0.5] * 6, abs=0.01)
