"""Computes statistics of paired figures: bootstrap intervals, a sign-flip test and corrected p-values, seeded so that a report repeats."""

from collections.abc import Callable, Iterator

import numpy as np

CHUNK = 1 << 22  # the number of figures that are drawn at a time


def mean_and_deviation(values: list[float]) -> tuple[float, float | None]:
    """Computes the mean and the standard deviation (divided by n - 1) of the values; the deviation of a single value is None."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def _resamples(size: int, repeats: int, seed: int) -> Iterator[np.ndarray]:
    """Yields draws of indices below `size` with replacement, int64 [chunk, size], with `repeats` rows in all."""
    rng, chunk = np.random.default_rng(seed), max(1, CHUNK // size)
    for start in range(0, repeats, chunk):
        yield rng.integers(0, size, (min(chunk, repeats - start), size))


def bootstrap_interval(
    values: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], repeats: int = 2000, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Computes the bootstrap's percentile interval of a statistic of means.

    Args:
        values: float [num_figures, n]; one draw of the n columns serves all figures, so that they stay paired.
        statistic: Computes float [repeats] from the figures' means, float [num_figures, repeats].
        repeats: Number of resamples.
        level: Coverage of the interval, between 0 and 1.
        seed: Seed of the resamples.

    Returns:
        Lower and upper end of the interval; resamples whose statistic is not finite are left out, and without any other both are nan.
    """
    means = np.concatenate([values[:, drawn].mean(-1) for drawn in _resamples(values.shape[1], repeats, seed)], axis=1)
    statistics = statistic(means)
    statistics = statistics[np.isfinite(statistics)]
    if not len(statistics):
        return float("nan"), float("nan")
    low, high = np.quantile(statistics, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mean_interval(values: np.ndarray, repeats: int = 2000, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Computes the bootstrap interval of the mean of values, float [n]; the arguments are those of `bootstrap_interval`."""
    return bootstrap_interval(values[None], lambda means: means[0], repeats, level, seed)


def sign_flip_p(differences: np.ndarray, repeats: int = 10_000, seed: int = 0) -> float:
    """Computes the two-sided p-value of a mean difference by random signs: (count + 1) / (repeats + 1).

    The count is the number of random assignments of signs whose mean is at least as far from 0 as the observed one.

    Args:
        differences: float [n], paired differences; under the null hypothesis each is as likely with the other sign.
        repeats: Number of random assignments of signs.
        seed: Seed of the signs.
    """
    differences = differences[differences != 0]  # differences of 0 add nothing under either sign
    if not len(differences):
        return 1.0
    rng, chunk, observed, count = np.random.default_rng(seed), max(1, CHUNK // len(differences)), abs(differences.sum()), 0
    for start in range(0, repeats, chunk):
        signs = rng.integers(0, 2, (min(chunk, repeats - start), len(differences)), dtype=np.int8) * 2.0 - 1
        count += int((np.abs(signs @ differences) >= observed * (1 - 1e-9)).sum())
    return (count + 1) / (repeats + 1)


def mean_difference(values: np.ndarray, others: np.ndarray) -> tuple[float, float]:
    """Computes the mean of paired differences, values - others, float [n] each, and its standard error (0 where n is 1)."""
    differences = values - others
    return float(differences.mean()), float(differences.std()) / len(differences) ** 0.5


def holm(p_values: list[float]) -> list[float]:
    """Adjusts p-values for their number by Holm's step-down method; returns them in the order given."""
    order, adjusted, largest = np.argsort(p_values), [0.0] * len(p_values), 0.0
    for place, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def ranks(values: list[float]) -> list[float]:
    """Ranks values from the highest, which has rank 1; equal values share the mean of their places, as in Friedman's test."""
    return [sum(other > value for other in values) + (sum(other == value for other in values) + 1) / 2 for value in values]


def transferability(student: np.ndarray, teacher: np.ndarray, undistilled: np.ndarray) -> np.ndarray:
    """Computes (student - undistilled) / (teacher - undistilled), the share of the teacher's lead that distillation brings.

    All arrays have the same shape; the result is not finite where teacher and undistilled student are equal.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return (student - undistilled) / (teacher - undistilled)
