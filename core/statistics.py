"""Statistics of paired figures: bootstrap intervals, a sign-flip test and corrected p-values. Seeded, so that a report repeats."""

from collections.abc import Callable, Iterator

import numpy as np

CHUNK = 1 << 22  # figures drawn at a time


def mean_and_deviation(values: list[float]) -> tuple[float, float | None]:
    """Mean and standard deviation (n - 1) of the values; None for the deviation of a single one."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def _resamples(size: int, repeats: int, seed: int) -> Iterator[np.ndarray]:
    """Draws with replacement, int64 [chunk, size], `repeats` rows in all."""
    rng, chunk = np.random.default_rng(seed), max(1, CHUNK // size)
    for start in range(0, repeats, chunk):
        yield rng.integers(0, size, (min(chunk, repeats - start), size))


def bootstrap_interval(
    values: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], repeats: int = 2000, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of a statistic of means.

    Args:
        values: float [num_figures, n]; one draw of the n columns serves all figures, so that they stay paired.
        statistic: From the figures' means, float [num_figures, repeats], to float [repeats].
        repeats: Resamples.
        level: Of the interval.
        seed: Of the resamples.

    Returns:
        Lower and upper end; resamples whose statistic is not finite are left out.
    """
    means = np.concatenate([values[:, drawn].mean(-1) for drawn in _resamples(values.shape[1], repeats, seed)], axis=1)
    found = statistic(means)
    found = found[np.isfinite(found)]
    if not len(found):
        return float("nan"), float("nan")
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mean_interval(values: np.ndarray, repeats: int = 2000, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Bootstrap interval of the mean of float [n]."""
    return bootstrap_interval(values[None], lambda means: means[0], repeats, level, seed)


def sign_flip_p(differences: np.ndarray, repeats: int = 10_000, seed: int = 0) -> float:
    """Two-sided p-value of a mean difference: how often random signs give a mean as far from 0, (count + 1) / (repeats + 1).

    Args:
        differences: float [n], paired differences; under the null hypothesis each is as likely with the other sign.
        repeats: Random assignments of signs.
        seed: Of the signs.
    """
    differences = differences[differences != 0]  # they add nothing under either sign
    if not len(differences):
        return 1.0
    rng, chunk, observed, count = np.random.default_rng(seed), max(1, CHUNK // len(differences)), abs(differences.sum()), 0
    for start in range(0, repeats, chunk):
        signs = rng.integers(0, 2, (min(chunk, repeats - start), len(differences)), dtype=np.int8) * 2.0 - 1
        count += int((np.abs(signs @ differences) >= observed * (1 - 1e-9)).sum())
    return (count + 1) / (repeats + 1)


def holm(p_values: list[float]) -> list[float]:
    """p-values adjusted for their number by Holm's step-down method, in the order given."""
    order, adjusted, largest = np.argsort(p_values), [0.0] * len(p_values), 0.0
    for place, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def transferability(student: np.ndarray, teacher: np.ndarray, undistilled: np.ndarray) -> np.ndarray:
    """(student - undistilled) / (teacher - undistilled): the share of the teacher's lead that distillation brings; element by element."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return (student - undistilled) / (teacher - undistilled)
