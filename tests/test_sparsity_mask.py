"""Masks, cuts, schedules and rules against brute force, on inputs that hypothesis makes up."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from svite.sparsity.cut import Cut, Part, Unit, block, element, fan_in, n_of_m
from svite.sparsity.mask import SAMPLE, count, lowest_kept, newborn, pack, survivors, top, unpack
from svite.sparsity.pool import Pool
from svite.sparsity.rule import DropGrow, Prune, bernoulli_start, exact_start
from svite.sparsity.schedule import constant, cosine, cubic, ending, every, linear, once, straight
from svite.sparsity.score import gradient, magnitude

VALUES = st.sampled_from([-math.inf, -1.0, 0.0, -0.0, 0.5, 0.5, 1.0, 2.0, math.inf]) | st.floats(
    width=32, allow_nan=False
)
QUICK = settings(max_examples=100, deadline=None)


@st.composite
def matrices(draw, values=VALUES, rows=3, columns=8) -> Tensor:
    """A matrix of (arena, member)."""
    height, width = draw(st.integers(1, rows)), draw(st.integers(1, columns))
    flat = draw(st.lists(values, min_size=height * width, max_size=height * width))
    return torch.tensor(flat).view(height, width)


def best(scores: list[float], keep: int, among: list[int]) -> set[int]:
    """The `keep` highest of some indices; of equals, the lower index. By sorting, one arena at a time."""
    return set(sorted(among, key=lambda i: (-scores[i], i))[: max(keep, 0)])


def as_sets(alive: Tensor) -> list[set[int]]:
    return [{i for i, lives in enumerate(row) if lives} for row in alive.tolist()]


# Selection


@QUICK
@given(matrices(), st.integers(-1, 10))
def test_top_is_exact_and_breaks_ties_by_index(scores, keep):
    expected = [best(row, keep, list(range(len(row)))) for row in scores.tolist()]
    assert as_sets(top(scores, keep)) == expected


@QUICK
@given(matrices(st.floats(0, 4, width=32)), st.integers(0, 10), st.randoms())
def test_survivors_and_newborn_choose_among_the_living_and_the_dead(scores, number, chance):
    alive = torch.tensor([[chance.random() < 0.5 for _ in row] for row in scores.tolist()])
    living = as_sets(alive)
    dead = as_sets(~alive)
    rows = scores.tolist()
    assert as_sets(survivors(scores, alive, number)) == [
        best(row, number, sorted(of)) for row, of in zip(rows, living, strict=True)
    ]
    assert as_sets(newborn(scores, alive, number)) == [
        best(row, number, sorted(of)) for row, of in zip(rows, dead, strict=True)
    ]


@QUICK
@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_packing_takes_a_bit_a_member_and_loses_nothing(bits):
    alive = torch.tensor([bits])
    assert pack(alive).numel() == math.ceil(len(bits) / 8)
    assert torch.equal(unpack(pack(alive), (1, len(bits))), alive)


@pytest.mark.parametrize(("density", "members", "expected"), [(0.1, 5, 1), (0.5, 5, 3), (0.3, 10, 3), (1.0, 7, 7)])
def test_a_density_is_rounded_to_the_nearest_count_halves_up(density, members, expected):
    assert count(density, members) == expected


# Cuts

CUTS = {
    "element": (element(), (4, 6), (1, 24)),
    "element of a convolution": (element(), (4, 3, 2, 2), (1, 48)),
    "n of m": (n_of_m(4), (3, 8), (6, 4)),
    "n of m of a convolution": (n_of_m(4), (3, 2, 2, 2), (6, 4)),
    "fan-in": (fan_in(), (5, 6), (5, 6)),
    "fan-in of a convolution": (fan_in(), (5, 3, 2, 2), (5, 12)),
    "block": (block(2, 3), (4, 6), (1, 4)),
}


@pytest.mark.parametrize(("cut", "shape", "grid"), CUTS.values(), ids=CUTS)
def test_gather_sums_each_members_elements_and_spread_is_its_inverse(cut, shape, grid):
    values = torch.arange(math.prod(shape), dtype=torch.float).view(shape)
    gathered = cut.gather(values)
    assert tuple(gathered.shape) == grid
    assert gathered.sum() == values.sum()
    generator = torch.Generator().manual_seed(0)
    alive = torch.rand(grid, generator=generator) < 0.5
    mask = cut.spread(alive, torch.Size(shape))
    assert mask.shape == shape
    size = math.prod(shape) // math.prod(grid)
    assert torch.equal(cut.gather(mask.float()), alive * float(size))
    for arena in range(grid[0]):  # one member at a time: its elements, and no others
        for member in range(grid[1]):
            one = torch.zeros(grid, dtype=torch.bool)
            one[arena, member] = True
            assert values[cut.spread(one, torch.Size(shape))].sum() == gathered[arena, member]


def test_members_lie_where_the_words_say():
    weight = torch.arange(16.0).view(2, 8)
    assert n_of_m(4).gather(weight).tolist()[2] == [8.0, 9.0, 10.0, 11.0]
    assert fan_in().gather(weight).tolist()[1] == weight[1].tolist()
    assert block(2, 4).gather(weight).tolist() == [[44.0, 76.0]]  # 0..3 and 8..11, 4..7 and 12..15


@pytest.mark.parametrize(("cut", "shape"), [(n_of_m(4), (3, 6)), (block(2, 2), (3, 4)), (block(2, 2), (4, 3))])
def test_a_cut_that_does_not_divide_does_not_fit(cut, shape):
    assert not cut.fits(torch.Size(shape))
    with pytest.raises(ValueError, match="does not divide by"):
        cut.axes(torch.Size(shape))
    assert Cut("o i -> 1 (o i) 1").fits(torch.Size(shape))


# Rules


def pool_of(arenas: int, members: int, density: float) -> Pool:
    unit = Unit("weight", (Part("weight", element()),), torch.Size((arenas, members)), arenas, members)
    return Pool((unit,), density)


@QUICK
@given(st.data(), st.integers(1, 3), st.integers(1, 10), st.floats(0, 1), st.floats(0, 1))
def test_drop_and_grow_keeps_every_arenas_count_and_agrees_with_brute_force(data, arenas, members, density, fraction):
    values = st.sampled_from([0.0, 0.0, 1.0, 2.0, 3.0])  # many ties
    rows = st.lists(st.lists(values, min_size=members, max_size=members), min_size=arenas, max_size=arenas)
    magnitudes, gradients, drawn = (torch.tensor(data.draw(rows)) for _ in range(3))
    pool = pool_of(arenas, members, density)
    alive = exact_start(drawn, pool)
    living = pool.keep(density)
    assert alive.sum(1).tolist() == [living] * arenas
    rule = DropGrow(magnitude, gradient, constant(fraction))
    after = rule.select(pool, alive, (magnitudes, gradients), 7)
    assert after.sum(1).tolist() == [living] * arenas
    if density < 1:
        births, left = divmod(math.floor(fraction * living * arenas + 0.5), arenas)
        weakest = [
            min((magnitudes[row, i].item() for i in was), default=math.inf) for row, was in enumerate(as_sets(alive))
        ]
        one_more = sorted(range(arenas), key=lambda row: (weakest[row], row))[:left]
        for row, was in enumerate(as_sets(alive)):
            births_here = births + (row in one_more)
            kept = best(magnitudes[row].tolist(), living - births_here, sorted(was))
            rest = [member for member in range(members) if member not in kept]  # the just-dropped among them
            assert as_sets(after)[row] == kept | best(gradients[row].tolist(), births_here, rest)


def test_the_just_dropped_may_grow_again():
    rule = DropGrow(magnitude, gradient, constant(0.5))
    alive = torch.tensor([[True, True, False, False]])
    scores = torch.tensor([[2.0, 1.0, 0.0, 0.0]]), torch.tensor([[0.0, 9.0, 1.0, 1.0]])
    assert torch.equal(rule.select(pool_of(1, 4, 0.5), alive, scores, 1), alive)


@QUICK
@given(matrices(st.sampled_from([0.0, 1.0, 2.0])), st.floats(0.01, 1), st.floats(0, 1), st.randoms())
def test_prune_never_revives_and_holds_the_count_where_enough_live(scores, density, progress, chance):
    alive = torch.tensor([[chance.random() < 0.7 for _ in row] for row in scores.tolist()])
    pool = pool_of(*scores.shape, density)
    after = Prune(magnitude, constant(progress)).select(pool, alive, (scores,), 3)
    assert not (after & ~alive).any()
    wanted = count(density + (1 - density) * (1 - progress), scores.shape[1])
    assert after.sum(1).tolist() == [min(wanted, living) for living in alive.sum(1).tolist()]


@pytest.mark.parametrize("members", range(1, 60))
@pytest.mark.parametrize("density", [0.05, 0.1, 0.3, 0.5, 0.6, 0.9])
def test_a_finished_ramp_holds_the_same_count_as_a_start(members, density):
    scores, pool = torch.rand(1, members), pool_of(1, members, density)
    pruned = Prune(magnitude).select(pool, torch.ones(1, members, dtype=torch.bool), (scores,), 0)
    assert torch.equal(pruned, exact_start(scores, pool))


def test_a_bernoulli_start_is_right_in_expectation_only():
    drawn = torch.rand(1, 10_000, generator=torch.Generator().manual_seed(0))
    alive = bernoulli_start(drawn, pool_of(1, 10_000, 0.3))
    assert alive.sum() != 3000
    assert alive.float().mean().item() == pytest.approx(0.3, abs=0.015)


# Schedules


@QUICK
@given(st.integers(1, 500), st.floats(0, 1), st.floats(0, 1))
def test_schedules_begin_and_end_where_they_should_and_stay_there(end, start, stop):
    for schedule in (linear(start, stop, end), cosine(start, end, stop), cubic(start, stop, end)):
        assert schedule(0) == pytest.approx(start)
        assert schedule(end) == schedule(end + 100) == pytest.approx(stop)
        values = [schedule(step) for step in range(end + 1)]
        assert values == sorted(values, reverse=start > stop) or start == pytest.approx(stop)
    assert constant(start)(end) == constant(start, end)(end) == start
    falling = [straight(start, end)(step) for step in range(end + 2)]
    assert falling == pytest.approx([start * (1 - step / end) for step in range(end + 1)] + [0.0], abs=1e-12)


def test_schedules_follow_their_formulas():
    assert cosine(0.5, 80)(20) == pytest.approx(0.25 * (1 + math.cos(math.pi / 4)))
    assert linear(1.0, 0.2, end=30, begin=10)(15) == pytest.approx(0.8)
    curve = cubic(0.0, 0.9, end=100)
    marks = [next(step for step in range(101) if curve(step) >= sparsity) for sparsity in (0.5, 0.75, 0.875)]
    assert marks == [24, 45, 70]  # the guides of the report's figure lie at 23.7, 45.0 and 69.7
    assert cubic(0.0, 1.0, end=9, begin=4)(4) == 0.0
    assert cubic(0.0, 1.0, end=4, begin=4)(4) == 1.0  # no time to ramp: at once
    assert cubic(0.0, 1.0, end=4, begin=4)(3) == 0.0


def test_triggers_name_their_steps():
    steps = range(31)
    assert [step for step in steps if every(10, until=25)(step)] == [10, 20]
    assert [step for step in steps if ending(10, last=25)(step)] == [5, 15, 25]
    assert [step for step in steps if ending(10, last=25, begin=6)(step)] == [15, 25]
    assert [step for step in steps if ending(30, last=25)(step)] == [25]
    assert [step for step in steps if once()(step)] == [0]
    assert [step for step in steps if once(7)(step)] == [7]
    with pytest.raises(ValueError, match="interval is 0; it must be a whole number of at least 1"):
        every(0, until=5)
    with pytest.raises(ValueError, match="interval is 0; it must be a whole number of at least 1"):
        ending(0, last=5)


LARGE = 16 * SAMPLE


@pytest.mark.parametrize("keep", [1, 7, LARGE // 3, LARGE // 2, LARGE - 1])
@pytest.mark.parametrize("kind", ["normal", "half dead", "one alive", "sorted", "few values", "constant", "waves"])
def test_a_large_arena_is_cut_where_a_search_among_all_would_cut_it(kind, keep):
    drawn = torch.randn(1, LARGE, generator=torch.Generator().manual_seed(0))
    step = LARGE // SAMPLE | 1
    scores = {
        "normal": drawn,
        "half dead": drawn.masked_fill(drawn < 0, -torch.inf),
        "one alive": torch.full_like(drawn, -torch.inf).index_fill(1, torch.tensor([5]), 1.0),
        "sorted": drawn.sort().values,
        "few values": (2 * drawn).round(),
        "constant": torch.ones_like(drawn),
        "waves": torch.arange(LARGE).remainder(step).float()[None],  # the sample sees one of its values alone
    }[kind]
    assert torch.equal(lowest_kept(scores, keep), scores.sort(descending=True).values[:, keep - 1 : keep])
    assert int(top(scores, keep).sum()) == keep
