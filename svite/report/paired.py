"""Paired intervals: two methods that saw the same images and seeds, compared image by image.

Most images are right under both methods; only those on which they differ carry information,
so a paired interval is much narrower than the two methods' own intervals suggest.
"""

import numpy as np
from scipy.special import stdtrit


def interval(ours: np.ndarray, theirs: np.ndarray, level: float = 0.95) -> tuple[float, float, float]:
    """Mean difference in points of accuracy, ours minus theirs, with its t interval.

    `ours` and `theirs` say which images are right: (seeds, images), in the same order. Seeds and images are crossed
    random effects, because a result should hold for other initialisations as well as for other test images: with the
    mean squares S of seeds, I of images and E of what is left of the differences,

        variance of the mean = (max(S - E, 0) + max(I - E, 0) + E) / (seeds * images),

    the moment estimators of the three components (Searle, Casella and McCulloch, Variance Components, 1992, chapter
    4). The degrees of freedom are Satterthwaite's (Biometrics Bulletin 2, 1946) of the mean squares that the sum still
    holds. Simulated with 1,000 images, a 95 % interval covers 93 to 98 % for 3, 5 and 10 seeds, 88 to 98 % for two.
    Of one seed there is the variance over images alone: nothing is said about other seeds.

    Raises ValueError for arrays of different shapes, and of fewer than two images.
    """
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    if ours.shape != theirs.shape or ours.ndim != 2 or not len(ours) or ours.shape[1] < 2:
        raise ValueError(
            "paired intervals need two arrays of the same shape (seeds, images), of two images or more, "
            f"not {ours.shape} and {theirs.shape}."
        )
    points = 100.0 * (ours.astype(float) - theirs.astype(float))
    variance, freedom = of_mean(points)
    mean, half = float(points.mean()), float(stdtrit(freedom, (1 + level) / 2) * np.sqrt(variance))
    return mean, mean - half, mean + half


def of_mean(points: np.ndarray) -> tuple[float, float]:
    """The variance of the mean of (seeds, images), and its degrees of freedom."""
    seeds, images = points.shape
    if seeds == 1:
        return float(points.var(ddof=1)) / images, images - 1
    of_seed, of_image, left = mean_squares(points)
    variance = max(of_seed - left, 0.0) + max(of_image - left, 0.0) + left
    holds_seed, holds_image = of_seed > left, of_image > left
    spread = (
        holds_seed * of_seed**2 / (seeds - 1)
        + holds_image * of_image**2 / (images - 1)
        + (holds_seed == holds_image) * left**2 / ((seeds - 1) * (images - 1))
    )
    return variance / points.size, variance**2 / spread if spread else 1.0


def mean_squares(points: np.ndarray) -> tuple[float, float, float]:
    """Those of seeds, of images and of what neither explains, of (seeds, images)."""
    seeds, images = points.shape
    of_seed, of_image = (points.mean(axis, keepdims=True) - points.mean() for axis in (1, 0))
    left = points - points.mean() - of_seed - of_image
    return (
        float(images * np.square(of_seed).sum()) / (seeds - 1),
        float(seeds * np.square(of_image).sum()) / (images - 1),
        float(np.square(left).sum()) / ((seeds - 1) * (images - 1)),
    )
