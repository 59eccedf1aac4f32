"""Encodes the teacher's scores in labels: as float16, or as uint8 with a range for each row (docs/method.md 3.7)."""

from dataclasses import dataclass

import numpy as np

from ...core.errors import InputError

FLOAT16_MAX = 65504.0
LEVELS = 255
ENCODINGS = ("float16", "uint8")


@dataclass(frozen=True)
class EncodedScores:
    """Holds encoded scores.

    Attributes:
        values: float16 or uint8 [n, k].
        ranges: float16 [n, 2], the lowest value and the step of each row of uint8 values; None where the values are float16.
    """

    values: np.ndarray
    ranges: np.ndarray | None = None

    def decode(self, out: np.ndarray | None = None) -> np.ndarray:
        """Returns the scores, float32 [n, k]; in `out` where it is given."""
        out = np.empty(self.values.shape, np.float32) if out is None else out
        if self.ranges is None:
            out[:] = self.values
            return out
        low, step = self.ranges.astype(np.float32).T
        np.multiply(self.values, step[:, None], out=out)
        out += low[:, None]
        return out


def encode(scores: np.ndarray, encoding: str, what: str) -> EncodedScores:
    """Encodes scores.

    An element of float16 differs from its score by at most 2^-11 of it, or by 2^-25 where it is smaller than 2^-14. One of uint8 differs by
    at most half the row's step, which is (highest - lowest) / 255 of the row and up to two units in the last place of float16 more.

    Args:
        scores: float32 [n, k].
        encoding: "float16" or "uint8".
        what: Names the scores in the message of an error.

    Raises:
        InputError: a score does not fit float16, in which ranges are kept too.
    """
    largest = float(np.abs(scores).max()) if scores.size else 0.0
    if not largest <= FLOAT16_MAX:
        raise InputError(
            f"{what} reach {largest:.3g}, float16 ends at {FLOAT16_MAX:.0f}; raise teacher.l2 or teacher.feature_decay, or lower the "
            "teacher's learning rates"
        )
    if encoding == "float16":
        return EncodedScores(scores.astype(np.float16))
    if not scores.shape[1]:
        return EncodedScores(np.zeros(scores.shape, np.uint8), np.zeros((len(scores), 2), np.float16))
    low = _half(scores.min(1), up=False)
    step = _half((scores.max(1) - low.astype(np.float32)) / LEVELS, up=True)
    divisor = np.where(step > 0, step, 1).astype(np.float32)
    levels = np.rint((scores - low.astype(np.float32)[:, None]) / divisor[:, None])
    return EncodedScores(levels.clip(0, LEVELS).astype(np.uint8), np.stack([low, step], 1))


def _half(x: np.ndarray, up: bool) -> np.ndarray:
    """Rounds float32 [n] to float16, up or down."""
    rounded = x.astype(np.float16)
    wrong = rounded < x if up else rounded > x
    towards = np.float16(np.inf if up else -np.inf)
    return np.where(wrong, np.nextafter(rounded, towards), rounded)


def index_dtype(count: int) -> type[np.integer]:
    """Returns the narrowest type of indices below `count` among uint8, uint16 and int32."""
    return np.uint8 if count <= 1 << 8 else np.uint16 if count <= 1 << 16 else np.int32
