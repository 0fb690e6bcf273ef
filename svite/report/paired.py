"""Paired intervals: two methods that saw the same images and seeds, compared image by image.

Most images are right under both methods; only those on which they differ carry information,
so a paired interval is much narrower than the two methods' own intervals suggest.
"""

import numpy as np


def interval(
    ours: np.ndarray, theirs: np.ndarray, draws: int = 2_000, level: float = 0.95, seed: int = 0
) -> tuple[float, float, float]:
    """Mean difference in points of accuracy, ours minus theirs, with its bootstrap interval.

    `ours` and `theirs` say which images are right: (seeds, images), in the same order. Each
    draw takes images with replacement and, independently, seeds with replacement, because a
    result should hold for other test images as well as for other initialisations. Few seeds
    say little about seeds: with three, the interval is somewhat too narrow.
    """
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    if ours.shape != theirs.shape or ours.ndim != 2 or not ours.size:
        raise ValueError(
            f"paired intervals need two arrays of the same shape (seeds, images), not {ours.shape} and {theirs.shape}."
        )
    points = 100.0 * (ours.astype(float) - theirs.astype(float))
    low, high = np.quantile(resample(points, draws, seed), [(1 - level) / 2, (1 + level) / 2])
    return float(points.mean()), float(low), float(high)


def resample(values: np.ndarray, draws: int, seed: int = 0) -> np.ndarray:
    """The mean of `values` (seeds, images) under each of `draws` resamplings of both axes."""
    generator = np.random.default_rng(seed)
    seeds, images = values.shape
    means = np.empty(draws)
    for draw in range(draws):
        some = np.bincount(generator.integers(images, size=images), minlength=images)
        means[draw] = (values @ some)[generator.integers(seeds, size=seeds)].mean() / images
    return means
