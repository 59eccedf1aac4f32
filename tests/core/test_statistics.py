"""Paired statistics against brute force and scipy."""

import itertools

import numpy as np
import pytest
import scipy.stats
from promptmm.core.statistics import bootstrap_interval, holm, mean_and_deviation, mean_interval, ranks, sign_flip_p, transferability


def test_mean_and_deviation():
    assert mean_and_deviation([1.0, 2.0, 4.5]) == (2.5, pytest.approx(np.std([1, 2, 4.5], ddof=1)))
    assert mean_and_deviation([3.0]) == (3.0, None)


@pytest.mark.parametrize(
    "differences", [[1.0, 2.0, -0.5, 3.0, 0.5, 1.5, 0.0], [1.0] * 9, [-2.0, 1.0, 1.0, 0.0], [0.3, -0.1, 0.2, -0.4, 0.6]]
)
def test_sign_flips_are_those_of_all_sign_vectors(differences):
    values = np.array(differences)
    sums = [abs(np.dot(signs, values)) for signs in itertools.product((-1, 1), repeat=len(values))]
    exact = np.mean(np.array(sums) >= abs(values.sum()) - 1e-12)
    assert sign_flip_p(values, repeats=20_000) == pytest.approx(exact, abs=0.01)


def test_sign_flips_of_equal_models():
    assert sign_flip_p(np.zeros(10)) == 1.0


def test_sign_flips_agree_with_the_t_test_on_many_users():
    differences = np.random.default_rng(0).normal(0.06, 1, 2000)
    assert sign_flip_p(differences) == pytest.approx(scipy.stats.ttest_1samp(differences, 0).pvalue, abs=0.005)
    assert sign_flip_p(differences) == sign_flip_p(differences)  # a report repeats


def test_the_bootstrap_is_scipys():
    values = np.random.default_rng(1).exponential(1, 400)
    expected = scipy.stats.bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(2))
    assert mean_interval(values, repeats=4000) == pytest.approx(tuple(expected.confidence_interval), abs=0.02)


def test_one_resample_serves_all_figures():
    values = np.random.default_rng(3).normal(0, 1, 300)
    low, high = bootstrap_interval(np.stack([values, values + 2]), lambda means: means[1] - means[0])
    assert (low, high) == (pytest.approx(2), pytest.approx(2))  # paired: a constant difference has no spread


def test_resamples_that_have_no_ratio_are_left_out():
    ones = np.ones((3, 20))
    assert all(np.isnan(bootstrap_interval(ones, lambda means: transferability(*means))))


def test_holm():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_ranks():
    values = [0.3, 0.5, 0.3, 0.1, 0.3]
    assert ranks(values) == [3, 1, 3, 5, 3]
    assert ranks(values) == scipy.stats.rankdata([-value for value in values]).tolist()
    assert ranks([]) == []


def test_transferability():
    student, teacher, undistilled = np.array([0.5, 1.0]), np.array([0.6, 2.0]), np.array([0.1, 2.0])
    np.testing.assert_allclose(transferability(student, teacher, undistilled), [0.8, -np.inf])
