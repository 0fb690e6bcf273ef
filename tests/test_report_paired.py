"""Paired intervals against sums in plain loops, simulated coverage, and the laws they keep."""

from math import sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import norm, t

from svite.report.paired import interval, mean_squares, of_mean

shapes = st.tuples(st.integers(1, 4), st.integers(2, 6))
pairs = shapes.flatmap(lambda shape: st.tuples(arrays(bool, shape), arrays(bool, shape)))


def in_plain_loops(points: np.ndarray) -> tuple[float, float, float]:
    """The mean squares as a textbook on two-way layouts writes them."""
    seeds, images = points.shape
    mean = sum(points[s, i] for s in range(seeds) for i in range(images)) / points.size
    rows = [sum(points[s]) / images for s in range(seeds)]
    columns = [sum(points[:, i]) / seeds for i in range(images)]
    left = sum((points[s, i] - rows[s] - columns[i] + mean) ** 2 for s in range(seeds) for i in range(images))
    return (
        images * sum((row - mean) ** 2 for row in rows) / (seeds - 1),
        seeds * sum((column - mean) ** 2 for column in columns) / (images - 1),
        left / (seeds - 1) / (images - 1),
    )


@settings(deadline=None, max_examples=50)
@given(pairs)
def test_the_mean_squares_are_those_of_a_two_way_layout(pair):
    points = 100.0 * (pair[0].astype(float) - pair[1])
    if len(points) > 1:
        assert mean_squares(points) == pytest.approx(in_plain_loops(points), abs=1e-6)


@settings(deadline=None, max_examples=50)
@given(pairs)
def test_swapping_the_methods_turns_the_interval_round(pair):
    difference, low, high = interval(*pair)
    assert interval(*pair[::-1]) == (-difference, -high, -low)
    assert low <= difference <= high
    assert difference == pytest.approx(100 * (pair[0].mean() - pair[1].mean()))


def test_components_that_come_out_negative_are_zero():
    """Seeds that agree more than chance has them leave the variance over images, with the images' degrees of freedom,
    and images that do leave that over seeds."""
    points = np.array([[2.0, -2.0, 0.0], [2.0, 0.0, -2.0]])  # each row sums to zero
    of_seed, of_image, left = mean_squares(points)
    assert of_seed == 0 < left < of_image
    assert of_mean(points) == pytest.approx((of_image / 6, 2))
    of_seed, of_image, left = mean_squares(points.T)
    assert of_image == 0 < left < of_seed
    assert of_mean(points.T) == pytest.approx((of_seed / 6, 2))
    of_seed, of_image, left = mean_squares(balanced := np.array([[1.0, -1.0], [-1.0, 1.0]]))
    assert of_seed == of_image == 0
    assert of_mean(balanced) == pytest.approx((left / 4, 1))


def test_components_of_seeds_and_images_add_up():
    points = np.array([[3.0, 1.0, 0.0], [0.0, -3.0, -2.0]])
    of_seed, of_image, left = in_plain_loops(points)
    assert left < min(of_seed, of_image)
    freedom = (of_seed + of_image - left) ** 2 / (of_seed**2 / 1 + of_image**2 / 2 + left**2 / 2)
    assert of_mean(points) == pytest.approx(((of_seed + of_image - left) / 6, freedom))


def test_one_seed_has_the_t_interval_of_its_images():
    generator = np.random.default_rng(7)
    ours, theirs = generator.random((1, 40)) < 0.95, generator.random((1, 40)) < 0.7
    gaps = 100.0 * (ours.astype(float) - theirs)[0]
    wide = t.ppf(0.95, 39) * gaps.std(ddof=1) / sqrt(40)
    assert interval(ours, theirs, level=0.9) == pytest.approx((gaps.mean(), gaps.mean() - wide, gaps.mean() + wide))


def test_seeds_that_disagree_have_the_t_interval_of_few_seeds():
    ours, theirs = np.ones((3, 500)), np.ones((3, 500))
    theirs[0, :] = 0  # all images under one seed, none under the others
    wide = t.ppf(0.975, 2) * 100 * sqrt(1 / 3) / sqrt(3)
    assert interval(ours, theirs) == pytest.approx((100 / 3, 100 / 3 - wide, 100 / 3 + wide))


def test_methods_that_agree_on_every_image_have_no_width():
    right = np.random.default_rng(0).random((3, 50)) < 0.9
    assert interval(right, right) == (0.0, 0.0, 0.0)
    assert interval(right[:1], right[:1]) == (0.0, 0.0, 0.0)
    assert interval(np.ones((3, 50)), np.zeros((3, 50))) == (100.0, 100.0, 100.0)


@pytest.mark.parametrize("shape", [(3, 4), (12,), (0, 5)])
def test_arrays_that_do_not_pair_are_refused(shape):
    with pytest.raises(ValueError, match=r"same shape \(seeds, images\)"):
        interval(np.ones(shape), np.ones((3, 5)))


def test_one_image_alone_is_refused():
    with pytest.raises(ValueError, match=r"of two images or more, not \(3, 1\) and \(3, 1\)"):
        interval(np.ones((3, 1)), np.zeros((3, 1)))


# Coverage

HARD, SHARED = 0.5, 0.8  # of what decides: the image's part, and of this the part that both methods share
EASE = norm.ppf(0.96)  # what decides lies below this for 96 % of the images
LUCK = (0.01 / norm.pdf(EASE)) ** 2  # variance of a seed's part that moves accuracy by one point


def drawn(generator: np.random.Generator, seeds: int, deviation: float, images: int = 1_000) -> list[np.ndarray]:
    """Two methods of 96 % accuracy, whose seeds differ by so many points; most images are hard for both or neither."""
    own, chance, luck = ((images,), HARD * (1 - SHARED)), ((seeds, images), 1 - HARD), ((seeds, 1), LUCK * deviation**2)
    shared = normal(generator, (images,), HARD * SHARED)
    return [shared + sum(normal(generator, *each) for each in (own, chance, luck)) < EASE for _ in range(2)]


def normal(generator: np.random.Generator, shape: tuple[int, ...], variance: float) -> np.ndarray:
    return generator.standard_normal(shape, dtype=np.float32) * np.float32(sqrt(variance))


def of_resamples(generator: np.random.Generator, ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    """The percentiles of a bootstrap over seeds and images."""
    points = 100.0 * (ours.astype(float) - theirs)
    seeds, images = (generator.multinomial(n, np.full(n, 1 / n), size=200) / n for n in points.shape)
    return tuple(np.quantile(((seeds @ points) * images).sum(1), [0.025, 0.975]))


def coverage(seeds: int, deviation: float, of, draws: int = 600) -> float:
    """How often the interval holds zero, which is the true difference."""
    generator = np.random.default_rng(5)
    found = [of(generator, *drawn(generator, seeds, deviation)) for _ in range(draws)]
    return float(np.mean([low <= 0 <= high for low, high in found]))


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("deviation", [0.0, 0.3, 0.6, 1.0])
def test_an_interval_covers_what_it_says(seeds, deviation):
    """93 to 98 %, and the standard error of 600 draws."""
    assert 0.92 <= coverage(seeds, deviation, lambda _, *pair: interval(*pair)[1:]) <= 0.985


def test_a_bootstrap_over_seeds_and_images_does_not():
    assert coverage(5, 0.0, of_resamples, draws=100) > 0.985
