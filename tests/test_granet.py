"""GraNet: every update against plain loops, and densities that follow the ramp."""

import pytest
import torch
from tiny import STEPS, adamw, made, run, vit

from svite import methods
from svite.sparsity.pool import erk, uniform
from svite.sparsity.schedule import linear
from svite.vit import structure


def in_plain_loops(
    weights: list[list[float]], gradients: list[list[float]], alive: list[list[bool]], keep: int, fraction: float
) -> list[list[bool]]:
    """Cut to `keep` over all layers, then let each layer replace its share; each layer's best is never cut."""
    best = {(i, max((j for j in range(len(w)) if a[j]), key=lambda j, w=w: abs(w[j])))
            for i, (w, a) in enumerate(zip(weights, alive, strict=True))}  # fmt: skip
    living = [(i, j) for i, layer in enumerate(alive) for j, lives in enumerate(layer) if lives]
    order = sorted(living, key=lambda at: (at in best, abs(weights[at[0]][at[1]])), reverse=True)
    left = {*order[:keep]}
    after = set()
    for i, layer in enumerate(weights):
        mine = sorted((at for at in left if at[0] == i), key=lambda at: (at in best, abs(weights[i][at[1]])))
        births = int(fraction * len(mine) + 0.5)
        kept = mine[births:]
        dead = sorted({(i, j) for j in range(len(layer))} - {*kept}, key=lambda at: abs(gradients[i][at[1]]))
        after |= {*kept, *dead[len(dead) - births :]}
    return [[(i, j) in after for j in range(len(layer))] for i, layer in enumerate(weights)]


@pytest.mark.parametrize("initial", [0.4, 0.7, 1.0])
@pytest.mark.parametrize("update", [1, 2, 3])
def test_an_update_is_that_of_plain_loops(initial, update):
    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(6, 5, bias=False), torch.nn.ReLU(), torch.nn.Linear(5, 4, bias=False))
    sparsifier = methods.granet(model, 0.4, 40, initial=initial, interval=10, until=0.75, ramp=linear, fraction=0.6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    sparsifier.step = 10 * update
    with torch.no_grad():
        for weight, mask in zip(model.parameters(), sparsifier.masks.values(), strict=True):
            weight.copy_(torch.randn_like(weight) * mask)
    model(torch.randn(8, 6)).square().sum().backward()
    given = [[tensor.flatten().tolist() for tensor in tensors] for tensors in (
        [*model.parameters()], [w.grad for w in model.parameters()], [*sparsifier.masks.values()])]  # fmt: skip
    keep = int((initial + (0.4 - initial) * update / 3) * 50 + 0.5)
    expected = in_plain_loops(*given, keep, sparsifier.fraction(10 * update))
    sparsifier.before_step(optimizer)
    assert [mask.flatten().tolist() for mask in sparsifier.masks.values()] == expected
    assert sum(map(sum, expected)) == min(keep, sum(map(sum, given[2])))


@pytest.mark.parametrize("initial", [0.5, 1.0])
def test_density_follows_its_cubic_from_the_initial_one(initial):
    model = vit()
    sparsifier = methods.granet(model, 0.2, 100, initial=initial, interval=10, until=0.8)
    assert sparsifier.density == pytest.approx(initial, abs=1e-3)
    run(model, adamw(model), sparsifier, range(100))
    expected = [0.2 + (initial - 0.2) * (1 - step / 80) ** 3 for step in range(10, 81, 10)]
    assert [update.density for update in sparsifier.updates] == pytest.approx(expected, abs=1e-3)
    assert [update.step for update in sparsifier.updates] == [*range(10, 81, 10)]
    first = int(initial == 1)  # where all live, none is born
    assert all(update.born for update in sparsifier.updates[first:-1])
    assert sparsifier.updates[-1].born == 0


def test_a_sparse_start_is_spread_by_erk():
    sparsifier = made("granet", vit(), 0.2, initial=0.5)
    asked = {pool.units[0].name: pool.keep(pool.density) for pool in erk(list(sparsifier.units.values()), 0.5)}
    assert {name: int(mask.sum()) for name, mask in sparsifier.masks.items()} == asked
    assert len({mask.float().mean() for mask in sparsifier.masks.values()}) > 2


def test_without_growth_it_is_gradual_pruning():
    masks = []
    for method, more in (("granet", {"initial": 1.0, "fraction": 0.0}), ("gmp", {"begin": 0.0})):
        model = vit()
        sparsifier = getattr(methods, method)(model, 0.3, STEPS, interval=19, until=0.8, **more)
        run(model, adamw(model), sparsifier)
        assert [update.step for update in sparsifier.updates] == [19]
        masks.append(sparsifier.masks)
    assert all(torch.equal(masks[0][name], masks[1][name]) for name in masks[0])


def test_each_layer_can_have_its_density_in_the_end():
    model = vit()
    sparsifier = made("granet", model, 0.3, pool=uniform)
    run(model, adamw(model), sparsifier)
    assert [float(mask.float().mean()) for mask in sparsifier.masks.values()] == pytest.approx([0.3] * 6, abs=0.02)


def test_heads_and_neurons_can_grow_back():
    model = vit(depth=2)
    sparsifier = made("granet", model, 0.5, initial=0.75, cut=structure.structures)
    run(model, adamw(model), sparsifier)
    assert sum(update.born for update in sparsifier.updates) > 0
    assert sparsifier.density == pytest.approx(0.5, abs=0.05)
