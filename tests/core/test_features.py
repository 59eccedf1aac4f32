"""Raw features: streamed moments, standardisation and PCA against numpy on the whole matrix."""

import numpy as np
import pytest
import torch
from promptmm.core import features
from promptmm.core.features import FeatureMoments, LazyRows, Standardisation, principal_axes


def correlated(seed, num_rows, dim, rank=None):
    """Columns of different scale and offset that are correlated, float64."""
    rng = np.random.default_rng(seed)
    factors = rng.standard_normal((num_rows, rank or dim)) @ rng.standard_normal((rank or dim, dim))
    return torch.from_numpy(factors * rng.uniform(0.1, 20, dim) + rng.uniform(-5, 5, dim))


def mask(seed, num_rows, share=0.8):
    return torch.from_numpy(np.random.default_rng(seed).random(num_rows) < share)


def fit(rows, present):
    moments = FeatureMoments.of(rows, present)
    columns = Standardisation.from_moments(moments)
    return moments, columns.with_mean_row_norm(columns.sum_of_row_norms(rows, present) / moments.count.clamp(min=1))


@pytest.mark.parametrize("columns", [1, 4, 512])
def test_moments_of_shards_and_chunks_add_up(monkeypatch, columns):
    monkeypatch.setattr(features, "GRAM_COLUMNS", columns)
    monkeypatch.setattr(features, "CHUNK_BYTES", 4 * 6 * 8)
    rows, present = correlated(0, 53, 6), mask(1, 53)
    rows[~present] = torch.nan  # whatever stands in a missing row does not matter
    whole = FeatureMoments.of(rows, present)
    shards = [FeatureMoments.of(rows[part], present[part]) for part in (slice(0, 20), slice(20, 53))]
    kept = rows[present].numpy()
    expected = [np.array(float(len(kept))), kept.sum(0), kept.T @ kept]
    monkeypatch.undo()
    in_one = FeatureMoments.of(rows, present)
    for streamed, chunked, one_pass, reference in zip(zip(*(s.tensors() for s in shards)), whole.tensors(), in_one.tensors(), expected):
        meant = np.triu if reference.ndim == 2 else np.asarray
        for found in (sum(streamed), chunked, one_pass):
            np.testing.assert_allclose(meant(found.numpy()), meant(reference), rtol=1e-12)
    np.testing.assert_allclose(whole.mean().numpy(), kept.mean(0), rtol=1e-12)
    np.testing.assert_allclose(whole.variance().numpy(), kept.var(0), rtol=1e-9)
    scale = torch.arange(6.0, dtype=torch.float64)
    covariance = np.cov((kept * scale.numpy()).T, bias=True)
    np.testing.assert_allclose(whole.upper_covariance(scale).triu().numpy(), np.triu(covariance), rtol=1e-9, atol=1e-12)


def test_standardised_rows():
    rows, present = correlated(2, 200, 5), mask(3, 200)
    rows[:, 3] = 7.3  # a constant column
    rows[~present] = 1e6
    moments = FeatureMoments.of(rows, present)
    columns = Standardisation.from_moments(moments)
    first = columns.apply(rows, present)
    assert first.dtype == torch.float32
    varying = [0, 1, 2, 4]
    np.testing.assert_allclose(first[present][:, varying].mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(first[present][:, varying].std(0, correction=0), 1, rtol=1e-6)
    assert torch.equal(first[:, 3], torch.zeros(200))
    assert torch.equal(first[~present], torch.zeros(int((~present).sum()), 5))

    scaled = fit(rows, present)[1].apply(rows, present)
    np.testing.assert_allclose(scaled[present].norm(dim=1).mean(), 1, rtol=1e-6)
    assert torch.equal(scaled[~present], torch.zeros_like(scaled[~present]))
    np.testing.assert_allclose(scaled, first / first[present].norm(dim=1).mean(), rtol=1e-5, atol=1e-7)


def test_whitened_rows():
    """Uncorrelated columns of nearly one deviation, but for the shrinkage; missing rows stay zero, and lazy rows are the same."""
    rows, present = correlated(2, 4000, 5), mask(3, 4000)
    moments = FeatureMoments.of(rows, present)
    plain = Standardisation.from_moments(moments)
    standard = plain.whitened(moments)
    x = standard.apply(rows, present)
    assert torch.equal(x[~present], torch.zeros_like(x[~present]))
    covariance = np.cov(plain.apply(rows, present)[present].numpy().T, bias=True)
    values, vectors = np.linalg.eigh(covariance)
    expected = vectors @ np.diag(values / (values + 0.1 * values.mean())) @ vectors.T
    np.testing.assert_allclose(np.cov(x[present].numpy().T, bias=True), expected, atol=1e-4)
    norms = standard.sum_of_row_norms(rows, present)
    assert float(norms) == pytest.approx(float(x[present].double().norm(dim=1).sum()), rel=1e-5)
    lazy = standard.lazily(lambda places: (rows[places].float(), present[places]), torch.arange(4000))
    weight = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    assert isinstance(lazy, LazyRows)
    torch.testing.assert_close(lazy.linear(weight), x @ weight.T, rtol=1e-4, atol=1e-4)


def test_sum_of_row_norms_in_chunks(monkeypatch):
    monkeypatch.setattr(features, "CHUNK_BYTES", 4 * 5 * 8)
    rows, present = correlated(4, 53, 5), mask(5, 53)
    columns = Standardisation.from_moments(FeatureMoments.of(rows, present))
    parts = [columns.sum_of_row_norms(rows[part], present[part]) for part in (slice(0, 9), slice(9, 53))]
    kept = rows[present].numpy()
    expected = np.linalg.norm((kept - kept.mean(0)) / kept.std(0), axis=1).sum()
    np.testing.assert_allclose(float(sum(parts)), expected, rtol=1e-10)


@pytest.mark.parametrize("value", [0.0, 0.1, 12345.678])
def test_constant_columns_are_zero(value):
    rows = torch.full((1000, 2), value, dtype=torch.float32)
    rows[:, 1] = torch.arange(1000) % 7
    present = torch.ones(1000, dtype=torch.bool)
    _, standard = fit(rows, present)
    assert float(standard.scale[0]) == 0
    assert float(standard.apply(rows, present)[:, 0].abs().max()) == 0
    assert float(standard.scale[1]) > 0


def test_all_rows_missing_or_all_columns_constant():
    nothing = torch.zeros(4, dtype=torch.bool)
    for rows, present in ((torch.ones(4, 3), nothing), (torch.ones(4, 3), ~nothing)):
        moments, standard = fit(rows, present)
        assert torch.equal(standard.apply(rows, present), torch.zeros(4, 3))
        assert torch.equal(principal_axes(moments, standard, 2), torch.zeros(3, 2, dtype=torch.float64))


def test_float16_sums_do_not_overflow():
    rows = torch.full((5000, 2), 60000.0, dtype=torch.float16)
    rows[::2, 0] = 50000.0
    rows[::2, 1] = -60000.0
    present = torch.ones(5000, dtype=torch.bool)
    moments, standard = fit(rows, present)
    reference = rows.double().numpy()
    np.testing.assert_allclose(moments.total.numpy(), reference.sum(0))
    np.testing.assert_allclose(moments.upper.triu().numpy(), np.triu(reference.T @ reference))
    out = standard.apply(rows, present)
    assert out.dtype == torch.float32
    np.testing.assert_allclose(out.double().mean(0), 0, atol=1e-7)
    np.testing.assert_allclose(out.double().norm(dim=1).mean(), 1, rtol=1e-6)


def pca_reference(rows, num_components):
    _, values, axes = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    axes = axes[:num_components].T
    signs = np.sign(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])])
    return values, axes * signs


@pytest.mark.parametrize("num_components", [1, 3, 6])
def test_principal_axes(num_components):
    rows, present = correlated(7, 80, 6), mask(8, 80)
    moments, standard = fit(rows, present)
    axes = principal_axes(moments, standard, num_components).numpy()
    standardised = ((rows - standard.mean) * standard.scale)[present].numpy()
    _, expected = pca_reference(standardised, num_components)
    np.testing.assert_allclose(axes, expected, atol=1e-7)


def test_streamed_axes_equal_those_of_one_pass(monkeypatch):
    rows, present = correlated(9, 80, 6), mask(10, 80)
    moments, standard = fit(rows, present)
    monkeypatch.setattr(features, "CHUNK_BYTES", 8 * 6 * 8)
    parts = [FeatureMoments.of(rows[p], present[p]).tensors() for p in (slice(0, 31), slice(31, 80))]
    streamed = FeatureMoments(*(sum(tensors) for tensors in zip(*parts)))
    torch.testing.assert_close(principal_axes(streamed, standard, 4), principal_axes(moments, standard, 4))


def test_the_sign_of_an_axis_does_not_depend_on_the_rows_sign_or_order():
    rows, present = correlated(11, 60, 5), torch.ones(60, dtype=torch.bool)
    expected = principal_axes(*fit(rows, present), 5)
    torch.testing.assert_close(principal_axes(*fit(-rows, present), 5), expected)
    torch.testing.assert_close(principal_axes(*fit(rows.flip(0), present), 5), expected)
    assert torch.equal(principal_axes(*fit(rows, present), 5), expected)
    assert (expected.gather(0, expected.abs().argmax(0, keepdim=True)) > 0).all()


@pytest.mark.parametrize(("rank", "num_components"), [(2, 4), (5, 8), (2, 8)])
def test_axes_beyond_the_rank_are_zero(rank, num_components):
    rows, present = correlated(12, 60, 5, rank), torch.ones(60, dtype=torch.bool)
    moments, standard = fit(rows, present)
    axes = principal_axes(moments, standard, num_components)
    assert axes.shape == (5, num_components)
    assert torch.equal(axes[:, rank:], torch.zeros(5, num_components - rank, dtype=torch.float64))
    standardised = ((rows - standard.mean) * standard.scale).numpy()
    np.testing.assert_allclose(axes[:, :rank].numpy(), pca_reference(standardised, rank)[1], atol=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_rows_that_are_read_as_they_are_multiplied(monkeypatch, dtype, tolerance):
    """Also where raw rows have more digits than the dtype: their mean is 30 deviations away."""
    monkeypatch.setattr(features, "PRODUCT_BYTES", 512 * 6 * 4)
    rows, present = correlated(13, 700, 6) + 30 * correlated(13, 700, 6).std(0), mask(14, 700)
    _, standard = fit(rows, present)
    reads = []

    def read(places):
        reads.append(places)
        return rows[places].float(), present[places]

    places, weight = torch.arange(700), torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    weight = weight.to(dtype).requires_grad_()
    lazy = standard.lazily(read, places)
    assert isinstance(lazy, LazyRows)
    out = lazy.linear(weight)
    assert out.dtype == dtype
    upstream = torch.randn(700, 4, generator=torch.Generator().manual_seed(1)).to(dtype)
    first, lazy_again = torch.autograd.grad((out * upstream).sum(), weight)[0], lazy.linear(weight)
    assert torch.equal(lazy_again, out)  # a forward pass that is repeated
    assert len(reads) == 6  # 512 rows at a time: forward, backward, forward
    x = standard.apply(rows, present)
    exact = weight.detach().float().requires_grad_()
    expected = x @ exact.T
    (expected_grad,) = torch.autograd.grad((expected * upstream.float()).sum(), exact)
    for found, wanted in ((out, expected), (first, expected_grad)):
        assert float((found.float() - wanted).abs().max()) < tolerance * float(wanted.abs().max())
