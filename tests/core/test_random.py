"""Counter-based random numbers: pinned values, uniformity, and independence of how the work is split."""

import math

import numpy as np
import pytest
import torch
from promptmm.core.random import (
    below,
    derive_seed,
    dropout,
    further_bits,
    permuted,
    random_below,
    random_bits,
    random_normal,
    random_uniform,
)

WORD = 2**64 - 1


def splitmix(*keys):
    """SplitMix64 once per key, in Python's integers."""
    state = 0
    for key in keys:
        z = ((state ^ (key & WORD)) + 0x9E3779B97F4A7C15) & WORD
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & WORD
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & WORD
        state = z ^ (z >> 31)
    return state


def test_bits_are_splitmix64():
    assert int(random_bits(0)) & WORD == 0xE220A8397B1DCDAF  # the first output of the published generator, seed 0
    for keys in [(1,), (0, 0), (3, 1, 4, 1, 5), (2**40, -7), (2**63 - 1, 1)]:
        assert int(random_bits(*keys)) & WORD == splitmix(*keys)
    columns = torch.arange(5)
    assert [int(x) & WORD for x in random_bits(8, columns, 9)] == [splitmix(8, c, 9) for c in range(5)]


def test_pinned_values():
    """Checkpoints and label blocks rely on these: a change makes resumed runs differ from whole ones."""
    keys = 1, 42, torch.arange(4)
    assert random_bits(*keys).tolist() == [2851204742667611941, 2692136478910883208, -2915054807057264541, -4577496852005640884]
    assert random_uniform(*keys).tolist() == [0.15456408262252808, 0.14594095945358276, 0.8419745564460754, 0.751853346824646]
    assert random_below(1000, *keys).tolist() == [154, 145, 841, 751]
    assert derive_seed(1, 2, 3) == 7510213797696614745
    assert dropout(torch.ones(2, 6), 0.5, 1, torch.arange(2)[:, None]).tolist() == [
        [0.0, 2.0, 2.0, 0.0, 2.0, 2.0],
        [2.0, 0.0, 2.0, 2.0, 2.0, 0.0],
    ]


def test_the_order_and_number_of_keys_matter():
    draws = [int(random_bits(*keys)) for keys in [(1, 2), (2, 1), (1,), (1, 0), (0, 1), (1, 2, 0)]]
    assert len(set(draws)) == len(draws)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_uniform(axis):
    """Mean 1/2, variance 1/12, flat and uncorrelated along the counter, whichever key counts."""
    size = 100_000
    keys: list = [7, 7, 7]
    keys[axis] = torch.arange(size)
    draws = random_uniform(*keys).double().numpy()
    assert 0 <= draws.min() < 1e-3
    assert 1 - 1e-3 < draws.max() < 1
    error = 5 / math.sqrt(size)  # five standard errors
    assert abs(draws.mean() - 0.5) < error * math.sqrt(1 / 12)
    assert abs(draws.var() - 1 / 12) < error * math.sqrt(1 / 180)
    for lag in (1, 2, 64):
        assert abs(np.corrcoef(draws[lag:], draws[:-lag])[0, 1]) < error
    counts = np.bincount((draws * 50).astype(int), minlength=50)
    assert ((counts - size / 50) ** 2 / (size / 50)).sum() < 100  # chi-square with 49 degrees of freedom: p < 1e-4


@pytest.mark.parametrize("bound", [1, 2, 7, 2**31 - 1])
def test_below(bound):
    draws = random_below(bound, 3, torch.arange(20_000)).numpy()
    assert draws.dtype == np.int64
    assert draws.min() >= 0
    assert draws.max() < bound
    if bound > 1:
        assert abs(draws.mean() / (bound - 1) - 0.5) < 0.02
    if bound <= 7:
        assert set(draws.tolist()) == set(range(bound))


def test_below_a_bound_per_row():
    bounds = torch.tensor([[1], [5], [50]])
    draws = random_below(bounds, 3, torch.arange(1000))
    assert draws.shape == (3, 1000)
    assert (draws < bounds).all()
    assert draws.amax(1).tolist() == [0, 4, 49]


def test_any_split_draws_the_same():
    rows, columns = torch.arange(12)[:, None], torch.arange(5)
    whole = random_uniform(3, rows, columns)
    assert torch.equal(torch.cat([random_uniform(3, part, columns) for part in rows.split([1, 4, 7])]), whole)
    assert torch.equal(torch.cat([random_uniform(3, rows, part) for part in columns.split(2)], 1), whole)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(random_uniform(3, rows[order], columns), whole[order])


def test_derived_seeds_are_valid_for_a_generator():
    seeds = {derive_seed(stream, seed) for stream in range(10) for seed in range(100)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)
    torch.Generator().manual_seed(max(seeds))


def test_dropout_depends_on_the_row_and_not_on_the_split():
    x = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    rows = torch.arange(100, 140)
    whole = dropout(x, 0.3, 5, rows[:, None])
    for sizes in ([40], [13, 27], [1] * 40):
        parts = zip(x.split(sizes), rows.split(sizes))
        assert torch.equal(torch.cat([dropout(part, 0.3, 5, r[:, None]) for part, r in parts]), whole)
    assert torch.equal(dropout(x.flip(0), 0.3, 5, rows.flip(0)[:, None]), whole.flip(0))
    assert not torch.equal(dropout(x, 0.3, 6, rows[:, None]), whole)


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_dropout_keeps_the_mean(probability):
    x = torch.ones(2000, 50, requires_grad=True)
    out = dropout(x, probability, 1, torch.arange(2000)[:, None])
    kept = out > 0
    torch.testing.assert_close(out[kept], torch.full_like(out[kept], 1 / (1 - probability)))
    assert abs(float(kept.double().mean()) - (1 - probability)) < 5 * math.sqrt(probability * (1 - probability) / 1e5)
    out.sum().backward()
    assert torch.equal(x.grad, out)


def test_no_dropout_is_the_identity():
    x = torch.randn(3, 4)
    assert dropout(x, 0.0, 1) is x


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17, 1000, 4097])
def test_permuted_is_a_permutation(size):
    positions = torch.arange(size)
    out = permuted(positions, size, 3, 4)
    assert torch.equal(out.sort().values, positions)
    assert torch.equal(permuted(positions[size // 3 :], size, 3, 4), out[size // 3 :])
    if size > 100:
        assert not torch.equal(out, permuted(positions, size, 3, 5))
        assert int((out == positions).sum()) < 10


def test_permuted_mixes():
    """Neighbours in the order are not neighbours in the catalog: mean distance near a third, rank correlation near 0."""
    size = 50_000
    out = permuted(torch.arange(size), size, 1).double()
    assert float((out[1:] - out[:-1]).abs().mean()) == pytest.approx(size / 3, rel=0.02)
    correlation = torch.corrcoef(torch.stack([out, torch.arange(size).double()]))[0, 1]
    assert abs(float(correlation)) < 0.02


def test_permuted_of_a_large_range_needs_no_memory_for_it():
    size = 10**15
    out = permuted(torch.tensor([0, 1, size - 1]), size, 9)
    assert out.unique().numel() == 3
    assert bool(((out >= 0) & (out < size)).all())


def test_normal():
    values = random_normal(7, torch.arange(200_000)).double()
    assert float(values.mean()) == pytest.approx(0, abs=0.01)
    assert float(values.std()) == pytest.approx(1, abs=0.01)
    assert float((values**4).mean()) == pytest.approx(3, abs=0.1)
    assert float(values.abs().max()) < 6


def test_shared_keys_may_be_mixed_once():
    rows, slots, bound = torch.arange(5), torch.arange(3), torch.tensor(100)
    bits = further_bits(random_bits(7, rows)[:, None], slots)
    assert torch.equal(bits, random_bits(7, rows[:, None], slots))
    assert torch.equal(below(bound, bits), random_below(bound, 7, rows[:, None], slots))
