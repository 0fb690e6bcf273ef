"""SRigL's update against the reference's loops (calgaryml/condensed-sparsity), written down again output by output."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from svite.sparsity.constant_fan_in import ConstantFanIn
from svite.sparsity.cut import Part, Unit, fan_in
from svite.sparsity.pool import Pool
from svite.sparsity.rule import exact_start
from svite.sparsity.schedule import constant
from svite.sparsity.score import gradient, magnitude


def highest(scores: list[tuple[float, int, int]], count: int) -> set[tuple[int, int]]:
    return {(o, i) for _, o, i in sorted(scores, key=lambda entry: (-entry[0], entry[1:]))[:count]}


def reference(weight: Tensor, slope: Tensor, alive: Tensor, density: float, fraction: float, salient: float) -> Tensor:
    """One update of one layer in plain loops; where the reference has arbitrary indices, what is said of `srigl`."""
    outputs, inputs = weight.shape
    everywhere = [(o, i) for o in range(outputs) for i in range(inputs)]
    budget = math.floor(density * inputs + 0.5) * outputs
    living = [(o, i) for o, i in everywhere if alive[o, i]]
    n_prune = int(len(living) * fraction)
    n_keep = len(living) - n_prune
    nonzero = [(o, i) for o, i in living if weight[o, i] != 0]
    if len(nonzero) < n_keep:
        n_keep = len(nonzero)
        n_prune = len(living) - n_keep
    marked = highest([(abs(float(weight[o, i])), o, i) for o, i in nonzero], n_keep)
    marked |= highest([(abs(float(slope[o, i])), o, i) for o, i in everywhere], n_prune)
    counts = [sum((o, i) in marked for i in range(inputs)) for o in range(outputs)]
    ablated = set()
    if salient:
        least = max(1, int(salient * (budget // outputs)))
        min_neurons = len(living) // inputs + (len(living) % inputs > 0)
        ranked = sorted(counts, reverse=True)
        if min_neurons < outputs and ranked[min_neurons] < least:
            least = ranked[min_neurons]
        if min_neurons < outputs:
            ablated = {o for o in range(outputs) if counts[o] < least}
    size = min(budget // (outputs - len(ablated)), inputs)
    kept = highest([(abs(float(weight[o, i])), o, i) for o, i in nonzero if o not in ablated], n_keep)
    after = torch.zeros_like(alive)
    for o in set(range(outputs)) - ablated:
        stays = highest([(abs(float(weight[o, i])), o, i) for i in range(inputs) if (o, i) in kept], size)
        others = [(abs(float(slope[o, i])), o, i) for i in range(inputs) if (o, i) not in stays]
        for place in stays | highest(others, size - len(stays)):
            after[place] = True
    return after


def pool_of(outputs: int, inputs: int, density: float) -> Pool:
    return Pool((Unit("w", (Part("w", fan_in()),), torch.Size((outputs, inputs)), outputs, inputs),), density)


def updates(outputs: int, inputs: int, density: float, fraction: float, salient: float, seed: int, zeros: float = 0.0):
    """Several updates in a row on random weights and gradients: each topology, and what the reference makes of it.

    Outputs differ in size, so that some are salient and some are not; newborn weights are zero where `zeros` says so.
    """
    generator = torch.Generator().manual_seed(seed)
    pool = pool_of(outputs, inputs, density)
    rule = ConstantFanIn(magnitude, gradient, constant(fraction), salient=salient)
    alive = rule.start(torch.rand(outputs, inputs, generator=generator), pool)
    for _ in range(5):
        sizes = torch.rand(2, outputs, 1, generator=generator) ** 3
        weight, slope = torch.randn(2, outputs, inputs, generator=generator) * sizes
        weight = weight * alive * (torch.rand(outputs, inputs, generator=generator) >= zeros)
        expected = reference(weight, slope, alive, density, fraction, salient)
        alive = rule.select(pool, alive, [weight.abs(), slope.abs()], 1)
        yield alive, expected


@pytest.mark.parametrize("zeros", [0.0, 0.7])
@pytest.mark.parametrize("salient", [0.0, 0.3, 0.95])
@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("density", [0.05, 0.2, 0.6, 0.97])
def test_an_update_is_the_references(density, fraction, salient, zeros):
    ablated = 0
    for seed in range(3):
        for alive, expected in updates(12, 20, density, fraction, salient, seed, zeros):
            assert torch.equal(alive, expected)
            ablated += int((~alive.any(1)).sum())
    assert not ablated or salient
    assert ablated or not (salient == 0.95 and density < 0.5 and fraction)


shapes = {"outputs": st.integers(1, 9), "inputs": st.integers(2, 12), "seed": st.integers(0, 99)}
shares = st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.95, 1.0])


@given(**shapes, density=st.floats(0.3, 1.0), fraction=shares, salient=shares)
@settings(max_examples=60, deadline=None)
def test_every_active_output_has_as_many_inputs_and_the_layer_its_budget(
    outputs, inputs, seed, density, fraction, salient
):
    pool = pool_of(outputs, inputs, density)
    budget = pool.keep(density) * outputs
    for alive, _ in updates(outputs, inputs, density, fraction, salient, seed):
        active = alive.any(1)
        fan_ins = alive[active].sum(1)
        assert (fan_ins == fan_ins[0]).all()
        assert fan_ins[0] == budget // int(active.sum())
        assert active.all() or salient
        assert int(active.sum()) >= min(outputs, budget / inputs)


def test_an_ablated_output_comes_back_by_its_gradients():
    pool = pool_of(4, 4, 0.5)
    rule = ConstantFanIn(magnitude, gradient, constant(0.5), salient=1.0)
    alive = torch.tensor([[True, True, False, False]] * 3 + [[False] * 4])
    weight = torch.tensor([[3.0, 2.0, 0.0, 0.0], [0.1, 0.2, 0.0, 0.0], [4.0, 5.0, 0.0, 0.0], [0.0] * 4])
    slope = torch.tensor([[0.0, 0.0, 0.0, 1.0], [0.0] * 4, [0.0] * 4, [5.0, 6.0, 7.0, 0.0]])
    after = rule.select(pool, alive, [weight, slope], 1)
    came = [[True, False, False, True], [False] * 4, [True, True, False, False], [False, True, True, False]]
    assert after.tolist() == came


def test_the_smallest_of_the_layer_go_and_not_those_of_each_output():
    pool, rule = pool_of(2, 4, 0.5), ConstantFanIn(magnitude, gradient, constant(0.5))
    alive = torch.tensor([[True, True, False, False]] * 2)
    weight = torch.tensor([[9.0, 8.0, 0.0, 0.0], [1.0, 2.0, 0.0, 0.0]])
    slope = torch.tensor([[0.0, 0.0, 9.0, 9.0]] * 2)
    after = rule.select(pool, alive, [weight, slope], 1)
    assert after.tolist() == [[True, True, False, False], [False, False, True, True]]


def test_a_share_outside_zero_to_one_is_refused():
    with pytest.raises(ValueError, match=r"^salient is 1\.5; it must lie between 0 and 1"):
        ConstantFanIn(magnitude, gradient, constant(0.3), salient=1.5)
    rule = ConstantFanIn(magnitude, gradient, lambda step: 2.0 if step else 0.3)
    pool = pool_of(2, 4, 0.5)
    alive = exact_start(torch.rand(2, 4), pool)
    with pytest.raises(ValueError, match=r"^fraction is 2\.0"):
        rule.select(pool, alive, [torch.rand(2, 4)] * 2, 1)
