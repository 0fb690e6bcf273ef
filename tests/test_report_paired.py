"""Paired intervals against an exact enumeration, a formula, and the laws they keep."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from svite.report.paired import interval, resample

shapes = st.tuples(st.integers(1, 3), st.integers(1, 4))
pairs = shapes.flatmap(lambda shape: st.tuples(arrays(bool, shape), arrays(bool, shape)))


def every_resample(points: np.ndarray) -> np.ndarray:
    """The mean of every resample there is, seeds and images drawn independently."""
    seeds, images = points.shape
    rows = [points[list(chosen)].mean(0) for chosen in product(range(seeds), repeat=seeds)]
    columns = [list(chosen) for chosen in product(range(images), repeat=images)]
    return np.array([row[chosen].mean() for row in rows for chosen in columns])


@settings(deadline=None, max_examples=30)
@given(pairs)
def test_the_interval_is_that_of_all_resamples(pair):
    ours, theirs = pair
    difference, low, high = interval(ours, theirs, draws=4000)
    exact = every_resample(100.0 * (ours.astype(float) - theirs))
    assert difference == pytest.approx(100 * (ours.mean() - theirs.mean()))
    for bound, level in ((low, 0.025), (high, 0.975)):
        assert np.mean(exact <= bound + 1e-9) >= level - 0.012
        assert np.mean(exact < bound - 1e-9) <= level + 0.012


@settings(deadline=None, max_examples=20)
@given(pairs)
def test_swapping_the_methods_turns_the_interval_round(pair):
    difference, low, high = interval(*pair, draws=200)
    assert interval(*pair[::-1], draws=200) == pytest.approx((-difference, -high, -low))


def test_many_images_give_the_normal_interval():
    generator = np.random.default_rng(7)
    ours, theirs = generator.random((1, 4000)) < 0.95, generator.random((1, 4000)) < 0.9
    gaps = 100.0 * (ours.astype(float) - theirs)
    wide = 1.96 * gaps.std() / np.sqrt(gaps.size)
    _, low, high = interval(ours, theirs)
    assert (low, high) == pytest.approx((gaps.mean() - wide, gaps.mean() + wide), abs=0.12 * wide)


def test_seeds_that_disagree_widen_the_interval():
    ours, theirs = np.ones((3, 500)), np.ones((3, 500))
    theirs[0, :100] = 0  # 20 points apart under one seed, none under the others
    _, low, high = interval(ours, theirs)
    assert low == pytest.approx(0.0)
    assert high > 12


def test_methods_that_agree_on_every_image_have_no_width():
    right = np.random.default_rng(0).random((3, 50)) < 0.9
    assert interval(right, right) == (0.0, 0.0, 0.0)


def test_draws_depend_on_nothing_but_the_seed():
    values = np.random.default_rng(0).normal(size=(2, 30))
    np.random.seed(1)  # noqa: NPY002 - shows that the global generator plays no part
    first = resample(values, 20)
    assert np.array_equal(first, resample(values, 20))
    assert not np.array_equal(first, resample(values, 20, seed=1))


@pytest.mark.parametrize("shape", [(3, 4), (12,), (0, 4)])
def test_arrays_that_do_not_pair_are_refused(shape):
    with pytest.raises(ValueError, match=r"same shape \(seeds, images\)"):
        interval(np.ones(shape), np.ones((3, 5)))
