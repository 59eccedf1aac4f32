"""The metrics of full rankings, in one table (docs/method.md 5).

A metric of a user is a function of its list's hits and its number of held-out items; its value is the mean over users. Catalog coverage is
the one metric of all lists together. A metric of your own is named in `evaluation.metrics` as module:function, and is a `UserMetric`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor

from .errors import InputError
from .graph import Csr
from .kinds import METRICS

# (hits, num_held_out) -> values: hits bool [users, k] by place of the list, num_held_out int64 [users], values float64 [users].
UserMetric: TypeAlias = Callable[[Tensor, Tensor], Tensor]


def _discounts(k: int) -> Tensor:
    """1 / log2(place + 2) for the places 0 to k - 1, float64 [k]."""
    return 1 / torch.arange(2, k + 2, dtype=torch.float64).log2()


def _ideal(k: int) -> Tensor:
    """The discounted gain of 0, 1, ..., k hits at the first places, float64 [k + 1]."""
    return torch.cat([torch.zeros(1, dtype=torch.float64), _discounts(k).cumsum(0)])


def _gain(hits: Tensor) -> Tensor:
    return (hits.double() * _discounts(hits.shape[1])).sum(1)


def _first(hits: Tensor) -> Tensor:
    """1 / (1 + place of the first hit), 0 without one."""
    return torch.where(hits.any(1), 1 / (hits.int().argmax(1) + 1).double(), 0.0)


def _average_precision(hits: Tensor, num_held_out: Tensor) -> Tensor:
    """Mean of the precisions at the hits' places, over min(k, held-out items)."""
    precision = hits.double().cumsum(1) / torch.arange(1, hits.shape[1] + 1)
    return (precision * hits).sum(1) / num_held_out.clamp(max=hits.shape[1])


@dataclass(frozen=True)
class Metric:
    """A metric that ships.

    Attributes:
        of_users: Its value for every user; None for a metric of all lists together.
        accumulator: The class of torch_geometric.metrics that computes its mean; None where there is none.
    """

    component: ClassVar[str] = "metric"
    of_users: UserMetric | None
    accumulator: str | None = None


RECALL = Metric(lambda hits, num_held_out: hits.double().sum(1) / num_held_out, "LinkPredRecall")
NDCG = Metric(lambda hits, num_held_out: _gain(hits) / _ideal(hits.shape[1])[num_held_out.clamp(max=hits.shape[1])], "LinkPredNDCG")
# The NGCF family's, whose ideal list holds the retrieved hits only: for comparison with published tables, never as NDCG.
NDCG_RETRIEVED = Metric(lambda hits, num_held_out: _gain(hits) / _ideal(hits.shape[1])[hits.sum(1)].clamp(min=1e-12))
PRECISION = Metric(lambda hits, num_held_out: hits.double().mean(1), "LinkPredPrecision")
HIT_RATIO = Metric(lambda hits, num_held_out: hits.any(1).double(), "LinkPredHitRatio")
MRR = Metric(lambda hits, num_held_out: _first(hits), "LinkPredMRR")
MAP = Metric(_average_precision, "LinkPredMAP")
COVERAGE = Metric(None)  # the share of the catalog that stands in some list


def user_metric(name: str) -> UserMetric:
    """The function of users that a metric's name stands for.

    Raises:
        InputError: there is no such metric, or it is not one of users.
    """
    metric = METRICS.get(name)
    of_users: UserMetric | None = metric.of_users if isinstance(metric, Metric) else metric
    if of_users is None:
        raise InputError(f"metric {name!r} is of all lists together and has no value for a user; name another one")
    return of_users


class RankingMetrics:
    """All metrics at several list lengths, as sums over users that workers add up.

    torch_geometric.metrics computes most means, but for coverage, where a place may be empty, and for those that it has not.

    Args:
        cutoffs: List lengths.
        num_items: Of the catalog.
        further: Names of metrics of the user's own; one that ships is there anyway.
    """

    def __init__(self, cutoffs: list[int], num_items: int, further: Sequence[str] = ()) -> None:
        from torch_geometric import metrics as pyg

        self.cutoffs, self.num_items = sorted(cutoffs), num_items
        shipped: dict[str, Metric] = {name: METRICS.get(name) for name in METRICS.names}
        self.collection = pyg.LinkPredMetricCollection(
            {
                f"{name}_at_{k}": getattr(pyg, metric.accumulator)(k)
                for name, metric in shipped.items() if metric.accumulator is not None
                for k in self.cutoffs
            }
        ).double()  # fmt: skip
        others = [name for name, metric in shipped.items() if metric.accumulator is None and metric.of_users is not None]
        self.of_users = {name: user_metric(name) for name in [*others, *(name for name in further if name not in shipped)]}
        self.sums = torch.zeros(len(self.of_users), len(self.cutoffs), dtype=torch.float64)
        self.recommended = torch.zeros(len(self.cutoffs), num_items + 1, dtype=torch.float64)  # the last column: empty places
        self.num_users = torch.zeros((), dtype=torch.float64)

    def update(self, ranked: Tensor, held_out: Csr) -> None:
        """Adds users.

        Args:
            ranked: int64 [rows, k], best first, k at least the largest cutoff; num_items marks an empty place.
            held_out: Their held-out items; every row must have at least one.
        """
        ranked, held_out = ranked.cpu(), held_out.to("cpu")
        labels = torch.stack([held_out.rows, held_out.columns])
        self.collection.update(ranked, labels)
        width = held_out.num_columns + 1  # one more for the mark of an empty place
        keys = held_out.rows * width + held_out.columns
        rows = torch.arange(ranked.shape[0])[:, None]
        hits, num_held_out = torch.isin(rows * width + ranked, keys), held_out.degrees
        for at, k in enumerate(self.cutoffs):
            self.recommended[at, ranked[:, :k].flatten()] = 1
            for number, metric in enumerate(self.of_users.values()):
                self.sums[number, at] += metric(hits[:, :k], num_held_out).double().sum()
        self.num_users += ranked.shape[0]

    def states(self) -> list[Tensor]:
        """The tensors to sum over workers, in place."""
        means = [getattr(metric, name) for metric in self.collection.values() for name in ("accum", "total")]
        return [*means, self.recommended, self.sums, self.num_users]

    def compute(self) -> dict[str, float]:
        """The means over users, as {"recall@20": ...}."""
        values = {name.replace("_at_", "@"): float(value) for name, value in self.collection.compute().items()}
        for at, k in enumerate(self.cutoffs):
            values[f"coverage@{k}"] = float((self.recommended[at, :-1] > 0).double().mean())
            for number, name in enumerate(self.of_users):
                values[f"{name}@{k}"] = float(self.sums[number, at] / self.num_users.clamp(min=1))
        return values


def metric_of_users(name: str, k: int, places: Tensor, rows: Tensor, degrees: Tensor) -> Tensor:
    """A metric at list length k for each user with held-out items; its mean is what an evaluation gives.

    Args:
        name: Of a metric of users.
        k: List length, at most the depth of the places.
        places: int64 [num_pairs], as `ranking.held_out_places` returns them.
        rows: The user of every pair, int64 [num_pairs] from 0 to num_users - 1.
        degrees: Held-out items of each user, int64 [num_users], none of them 0.

    Returns:
        float64 [num_users].

    Raises:
        InputError: there is no such metric of users.
    """
    found = places < k
    hits = torch.zeros(degrees.numel(), k, dtype=torch.bool)
    hits[rows[found], places[found]] = True
    return user_metric(name)(hits, degrees).double()
