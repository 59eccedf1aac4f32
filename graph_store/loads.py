"""What users and items cost the hosts of their parts: shares of all nodes, in-edges and bytes of feature rows."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .adjacency import runs

RUN_EDGES = 1 << 20  # edges, and nodes, that are in work at a time


@dataclass(frozen=True)
class Loads:
    """What each node of one side adds to the part that owns it, as shares of the side's total.

    Attributes:
        pointers: int64 [n + 1], of its in-edges.
        feature_bytes: int64 [n] bytes of its present feature rows; None for users.
    """

    pointers: np.ndarray
    feature_bytes: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.pointers) - 1

    def of(self, first: int, last: int) -> np.ndarray:
        """Shares of nodes [first, last), float64 [last - first, 2 or 3], in the order nodes, edges, feature bytes."""
        parts = [np.full(last - first, 1 / len(self)), np.diff(self.pointers[first : last + 1]) / max(1, int(self.pointers[-1]))]
        if self.feature_bytes is not None:
            parts.append(self.feature_bytes[first:last] / self._total_bytes)
        return np.stack(parts, 1)

    @functools.cached_property
    def _total_bytes(self) -> int:
        return 1 if self.feature_bytes is None else max(1, int(self.feature_bytes.sum()))

    def sums(self, labels: np.ndarray, count: int) -> np.ndarray:
        """Shares by label, float64 [count, 2 or 3]; nodes with a label below 0 are left out.

        Args:
            labels: integers, one for every node.
            count: Number of labels.
        """
        total = np.zeros((count, self.of(0, 0).shape[1]))
        for first, last in self.runs(1):
            total += sum_by(labels[first:last], self.of(first, last), count)
        return total

    def runs(self, num_runs: int) -> Iterator[tuple[int, int]]:
        """Cuts the nodes into at least about `num_runs` runs [first, last), each with at most its share of nodes and edges."""
        limits = (max(1, min(RUN_EDGES, total // num_runs)) for total in (int(self.pointers[-1]), len(self)))
        return runs(self.pointers, *limits)


def sum_by(labels: np.ndarray, shares: np.ndarray, count: int) -> np.ndarray:
    """Column sums of `shares` by label, float64 [count, columns]; rows with a label below 0 are left out.

    Args:
        labels: integers [n].
        shares: float64 [n, columns].
        count: Number of labels.
    """
    kept = labels >= 0
    return np.stack([np.bincount(labels[kept], column[kept], count) for column in shares.T], 1)
