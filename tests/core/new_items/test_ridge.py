"""The closed form of ridge regression against a dense least-squares solution."""

import pytest
import torch
from promptmm.core.new_items.ridge import RidgeSums


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense(z, targets, weights, penalty, scales) -> torch.Tensor:
    """W by least squares on the rows times the root of their weights, with a row of root(penalty · Σ w) for each column."""
    root, mean = weights.sqrt()[:, None], weights @ targets / weights.sum()
    strength = (penalty * weights.sum()).sqrt() * torch.eye(z.shape[1], dtype=torch.float64)
    system = torch.cat([root * z * scales, strength])
    wanted = torch.cat([root * (targets - mean), torch.zeros(z.shape[1], targets.shape[1], dtype=torch.float64)])
    return scales[:, None] * torch.linalg.lstsq(system, wanted).solution


@pytest.mark.parametrize("penalty", [1e-6, 0.1, 10.0])
@pytest.mark.parametrize(("count", "width"), [(40, 7), (5, 9)])  # more rows than columns, and fewer
def test_it_is_the_dense_solution(penalty, count, width):
    z, targets, weights = draw(count, width), draw(count, 3, seed=1), draw(count, seed=2).exp()
    scales = draw(width, seed=3).exp()
    sums = RidgeSums.of(z, targets, weights)
    torch.testing.assert_close(sums.solve(penalty, scales), dense(z, targets, weights, penalty, scales), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(sums.mean_target(), weights @ targets / weights.sum())


def test_some_columns_are_solved_as_if_there_were_no_others():
    z, targets, weights, columns = draw(30, 8), draw(30, 2, seed=1), draw(30, seed=2).exp(), torch.tensor([6, 0, 3])
    alone = RidgeSums.of(z[:, columns], targets, weights).solve(0.1, torch.ones(3, dtype=torch.float64))
    within = RidgeSums.of(z, targets, weights).solve(0.1, torch.ones(8, dtype=torch.float64), columns)
    torch.testing.assert_close(within, alone)


def test_a_column_of_scale_0_has_no_weight():
    scales = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    solved = RidgeSums.of(draw(20, 3), draw(20, 2, seed=1), torch.ones(20)).solve(0.1, scales)
    assert (solved[1] == 0).all()
    assert (solved[[0, 2]] != 0).all()


def test_sums_of_folds_add_up_and_can_be_taken_away(monkeypatch):
    z, targets, weights = draw(33, 6), draw(33, 2, seed=1), draw(33, seed=2).exp()
    first, second = (RidgeSums.of(z[half], targets[half], weights[half]) for half in (slice(0, 20), slice(20, 33)))
    monkeypatch.setattr("promptmm.core.new_items.ridge.chunk_rows", lambda dim: 4)
    whole, ones = RidgeSums.of(z, targets, weights), torch.ones(6, dtype=torch.float64)
    torch.testing.assert_close((first + second).solve(0.1, ones), whole.solve(0.1, ones))
    torch.testing.assert_close((whole - second).solve(0.1, ones), first.solve(0.1, ones))
