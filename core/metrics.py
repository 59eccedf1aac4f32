"""Computes the metrics of full rankings (docs/method.md 5).

A user metric is a function of the hits in a user's list and of the user's number of held-out items; an evaluation reports its mean over
users. Catalog coverage alone is computed from all lists together. A metric of your own is named in `evaluation.metrics` as
module:function, and is a `UserMetric`.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeAlias

import torch
from torch import Tensor

from .errors import InputError
from .graph import Csr
from .kinds import METRICS

if TYPE_CHECKING:
    from torch_geometric.metrics import LinkPredMetricCollection

# From (hits, num_held_out) to values: hits bool [users, k] by place in the list, num_held_out int64 [users], values float64 [users].
UserMetric: TypeAlias = Callable[[Tensor, Tensor], Tensor]


def _discounts(k: int) -> Tensor:
    """Returns 1 / log2(place + 2) for the places 0 to k - 1, float64 [k]."""
    return 1 / torch.arange(2, k + 2, dtype=torch.float64).log2()


def _ideal(k: int) -> Tensor:
    """Returns the discounted gains of lists whose first 0, 1, ..., k places are hits, float64 [k + 1]."""
    return torch.cat([torch.zeros(1, dtype=torch.float64), _discounts(k).cumsum(0)])


def _gain(hits: Tensor) -> Tensor:
    """Returns the discounted gain of each user's hits, float64 [users]."""
    return (hits.double() * _discounts(hits.shape[1])).sum(1)


def _first(hits: Tensor) -> Tensor:
    """Returns 1 / (1 + place of the first hit), with places from 0, and 0 for a user without a hit."""
    return torch.where(hits.any(1), 1 / (hits.int().argmax(1) + 1).double(), 0.0)


def _average_precision(hits: Tensor, num_held_out: Tensor) -> Tensor:
    """Returns the sum of the precisions at the hits' places, divided by min(k, number of held-out items)."""
    precision = hits.double().cumsum(1) / torch.arange(1, hits.shape[1] + 1)
    return (precision * hits).sum(1) / num_held_out.clamp(max=hits.shape[1])


@dataclass(frozen=True)
class Metric:
    """Describes a metric that ships.

    Attributes:
        of_users: Computes its value for every user; None for a metric that is computed from all lists together.
        accumulator: Name of the class of torch_geometric.metrics that computes its mean; None where there is none.
    """

    component: ClassVar[str] = "metric"
    of_users: UserMetric | None
    accumulator: str | None = None


RECALL = Metric(lambda hits, num_held_out: hits.double().sum(1) / num_held_out, "LinkPredRecall")
NDCG = Metric(lambda hits, num_held_out: _gain(hits) / _ideal(hits.shape[1])[num_held_out.clamp(max=hits.shape[1])], "LinkPredNDCG")
# The NGCF family's NDCG, whose ideal list holds the retrieved hits only: for comparison with published tables, never reported as NDCG.
NDCG_RETRIEVED = Metric(lambda hits, num_held_out: _gain(hits) / _ideal(hits.shape[1])[hits.sum(1)].clamp(min=1e-12))
PRECISION = Metric(lambda hits, num_held_out: hits.double().mean(1), "LinkPredPrecision")
HIT_RATIO = Metric(lambda hits, num_held_out: hits.any(1).double(), "LinkPredHitRatio")
MRR = Metric(lambda hits, num_held_out: _first(hits), "LinkPredMRR")
MAP = Metric(_average_precision, "LinkPredMAP")
COVERAGE = Metric(None)  # the share of the catalog that is in any user's list


def user_metric(name: str) -> UserMetric:
    """Returns the function that computes the named metric for every user.

    Raises:
        InputError: there is no such metric, or it has no value for a single user.
    """
    metric = METRICS.get(name)
    of_users: UserMetric | None = metric.of_users if isinstance(metric, Metric) else metric
    if of_users is None:
        raise InputError(f"metric {name!r} is computed from all lists together and has no value for a user; name another one")
    return of_users


def is_of_users(name: str) -> bool:
    """Whether a metric has a value for each user; catalog coverage has not."""
    metric = METRICS.get(name)
    return not isinstance(metric, Metric) or metric.of_users is not None


def of_each_user(name: str, hits: Tensor, num_held_out: Tensor) -> Tensor:
    """Computes a metric for every user.

    Args:
        name: Name of a metric of users.
        hits: bool [users, k], hits by place of the list.
        num_held_out: int64 [users].

    Returns:
        float64 [users].

    Raises:
        InputError: there is no such metric of users, or its function returns something else than a number for each user.
    """
    values = user_metric(name)(hits, num_held_out)
    if not isinstance(values, Tensor) or values.shape != num_held_out.shape:
        made = f"a tensor of shape {list(values.shape)}" if isinstance(values, Tensor) else f"a {type(values).__name__}"
        raise InputError(f"metric {name!r} returns {made} for {num_held_out.numel()} users; return a value for each user, [users]")
    return values.double()


class RankingMetrics:
    """Accumulates all metrics at several list lengths, as sums over users that workers can add up.

    torch_geometric.metrics computes most means. This class computes coverage, since a list may have empty places, and the metrics that
    torch_geometric lacks.

    Args:
        cutoffs: List lengths.
        num_items: Number of items in the catalog.
        further: Names of metrics beside those that ship, as `evaluation.metrics` lists them.

    Raises:
        InputError: A name in `further` is that of no metric.
    """

    def __init__(self, cutoffs: list[int], num_items: int, further: Sequence[str] = ()) -> None:
        self.cutoffs, self.num_items = sorted(cutoffs), num_items
        shipped: dict[str, Metric] = {name: METRICS.get(name) for name in METRICS.names}
        self.accumulators = [
            (f"{name}@{k}", metric.accumulator, k)
            for name, metric in shipped.items() if metric.accumulator is not None
            for k in self.cutoffs
        ]  # fmt: skip
        for name in further:
            METRICS.get(name)  # raises for a name that no metric has
        others = [name for name, metric in shipped.items() if metric.accumulator is None and metric.of_users is not None]
        self.of_users = [*others, *(name for name in further if name not in shipped)]
        self.means = torch.zeros(len(self.accumulators), 2, dtype=torch.float64)  # of each: the sum over users, and their number
        self.sums = torch.zeros(len(self.of_users), len(self.cutoffs), dtype=torch.float64)
        self.recommended = torch.zeros(len(self.cutoffs), num_items + 1, dtype=torch.float64)  # the last column counts empty places
        self.num_users = torch.zeros((), dtype=torch.float64)

    @functools.cached_property
    def _collection(self) -> "LinkPredMetricCollection":
        """Metrics of torch_geometric; made for the first lists, since the import takes seconds, and who adds up has none."""
        from torch_geometric import metrics as pyg

        return pyg.LinkPredMetricCollection({name: getattr(pyg, kind)(k) for name, kind, k in self.accumulators}).double()

    def update(self, ranked: Tensor, held_out: Csr) -> None:
        """Adds the lists of some users.

        Args:
            ranked: Item indices, int64 [users, k], best first, with k at least the largest cutoff; num_items marks an empty place.
            held_out: The same users' held-out items; every row must have at least one.
        """
        ranked, held_out = ranked.cpu(), held_out.to("cpu")
        self._collection.update(ranked, torch.stack([held_out.rows, held_out.columns]))
        self.means += torch.stack([torch.stack([metric.accum, metric.total]) for metric in self._collection.values()])
        self._collection.reset()
        width = held_out.num_columns + 1  # one more than the items, for the mark of an empty place
        keys = held_out.rows * width + held_out.columns
        rows = torch.arange(ranked.shape[0])[:, None]
        hits, num_held_out = torch.isin(rows * width + ranked, keys), held_out.degrees
        for at, k in enumerate(self.cutoffs):
            self.recommended[at, ranked[:, :k].flatten()] = 1
            for number, name in enumerate(self.of_users):
                self.sums[number, at] += of_each_user(name, hits[:, :k], num_held_out).sum()
        self.num_users += ranked.shape[0]

    def states(self) -> list[Tensor]:
        """Returns the accumulators themselves, to be summed over workers in place."""
        return [self.means, self.recommended, self.sums, self.num_users]

    def compute(self) -> dict[str, float]:
        """Computes the metrics, as {"recall@20": ...}: means over users, and coverage."""
        totals, counts = self.means.T
        values = {name: float(total / count.clamp(min=1)) for (name, _, _), total, count in zip(self.accumulators, totals, counts)}
        for at, k in enumerate(self.cutoffs):
            values[f"coverage@{k}"] = float((self.recommended[at, :-1] > 0).double().mean())
            for number, name in enumerate(self.of_users):
                values[f"{name}@{k}"] = float(self.sums[number, at] / self.num_users.clamp(min=1))
        return values


def metric_of_users(name: str, k: int, places: Tensor, rows: Tensor, degrees: Tensor) -> Tensor:
    """Computes a metric at list length k for each user with held-out items; an evaluation reports its mean over users.

    Args:
        name: Name of a metric that has a value for every user.
        k: List length, at most the `depth` that the places were computed for.
        places: int64 [num_pairs], the places of the held-out items as `ranking.held_out_places` returns them.
        rows: The user of every pair, int64 [num_pairs], from 0 to num_users - 1.
        degrees: The number of held-out items of each user, int64 [num_users], none of them 0.

    Returns:
        float64 [num_users].

    Raises:
        InputError: there is no such metric, or it has no value for a single user.
    """
    is_hit = places < k
    hits = torch.zeros(degrees.numel(), k, dtype=torch.bool)
    hits[rows[is_hit], places[is_hit]] = True
    return of_each_user(name, hits, degrees)
