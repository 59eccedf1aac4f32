"""Encoded scores: how far they are from the scores, over magnitudes and in corner cases."""

import numpy as np
import pytest
from promptmm.core.errors import InputError
from promptmm.distributed.labels.encoding import EncodedScores, encode, index_dtype


@pytest.mark.parametrize("scale", [1e-9, 1e-6, 1e-3, 1.0, 30.0, 1e3])
@pytest.mark.parametrize("offset", [0.0, -3.0, 50.0])
def test_uint8_is_at_most_half_a_step_away(scale, offset):
    scores = (np.random.default_rng(0).normal(offset, 1, (200, 33)) * scale).astype(np.float32)
    found = encode(scores, "uint8", "scores")
    low, step = found.ranges.astype(np.float64).T
    assert (low <= scores.min(1)).all()
    assert (low + 255 * step >= scores.max(1) - 1e-6 * np.abs(scores).max(1)).all()
    error = np.abs(found.decode() - scores)
    assert (error <= 0.5 * step[:, None] + 1e-6 * np.abs(scores).max(1, keepdims=True)).all()
    spread = np.ptp(scores, axis=1)
    assert (step <= spread / 255 * (1 + 2**-9) + np.abs(scores).max(1) * 2**-9 / 255 + 2**-24 * (1 + 1 / 255)).all()


def test_float16_keeps_eleven_digits():
    scores = np.random.default_rng(1).normal(0, 5, (50, 20)).astype(np.float32)
    found = encode(scores, "float16", "scores")
    assert found.ranges is None
    assert (np.abs(found.decode() - scores) <= np.abs(scores) * 2**-11 + 2**-25).all()


@pytest.mark.parametrize("encoding", ["float16", "uint8"])
def test_equal_scores_and_rows_without_any_come_back(encoding):
    equal = np.full((3, 4), 0.25, np.float32)
    assert (encode(equal, encoding, "scores").decode() == equal).all()
    for shape in ((0, 4), (3, 0)):
        assert encode(np.zeros(shape, np.float32), encoding, "scores").decode().shape == shape


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -7e4])
@pytest.mark.parametrize("encoding", ["float16", "uint8"])
def test_scores_that_do_not_fit_are_named(wrong, encoding):
    with pytest.raises(InputError, match="scores of visual reach"):
        encode(np.array([[0.0, wrong]], np.float32), encoding, "scores of visual")


def test_indices_are_as_narrow_as_they_can_be():
    assert [index_dtype(count) for count in (1, 256, 257, 65536, 65537)] == [np.uint8, np.uint8, np.uint16, np.uint16, np.int32]


def test_a_decoded_row_is_float32():
    values, ranges = np.array([[0, 255]], np.uint8), np.array([[-1, 0.5]], np.float16)
    assert EncodedScores(values, ranges).decode().tolist() == [[-1.0, 126.5]]
    assert EncodedScores(values, ranges).decode().dtype == np.float32
