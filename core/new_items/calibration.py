"""Brings mapped vectors to the scale of the student's, so that new items rank sensibly beside the others (docs/method.md 11.4)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..graph import ROWS_A_BLOCK, Csr
from ..ranking import Rows
from ..top_k import top_k
from .draws import STREAM_CALIBRATION, order_by_draw

FEW = 3  # the items of few interactions are the third with the fewest
FIRST_PLACES = 20
MOST_USERS, MOST_ITEMS = 1000, 4000  # whose scores are compared
LEAST_SHARE = 1e-6  # of the mean variance, added where users' vectors have directions without any


@dataclass(frozen=True)
class Calibration:
    """Holds f -> factor · f + shift; within the new items no user's ranking changes by it.

    Attributes:
        factor: A number above 0.
        shift: float64 [d], the same for all items: of the vectors that add 1 to the mean user's score, times `level`, the one whose
            addition varies least over users.
        level: What `shift` adds to the mean user's score.
        share_of_places: The share of an item of few interactions, and so of a new one, in the first places, where 1 is an item's in the
            mean.
    """

    factor: float
    shift: Tensor
    level: float
    share_of_places: float


def calibrate(
    users: Tensor, items: Tensor, seen: Rows, degrees: Tensor, predicted: Tensor, seed: int = 0, rows: Tensor | None = None
) -> Calibration:
    """Computes the calibration after which a mapped item is seen as often as an item of few interactions.

    First, the mean deviation of the mapped items' scores over users is brought to that of the items of few interactions. Then all
    mapped items are moved together, until they reach the first 20 places of as many users as items of few interactions do. A user's
    places are those of the fitted items that are not of the user's train items; a mapped item has its place beside them.

    Args:
        users: The student's vectors of users, float [num_users, d]; may be memory-mapped.
        items: The student's vectors of the fitted items, float [n, d].
        seen: Train items of the users that count, by their place among the fitted items.
        degrees: Numbers of train interactions of these items, int64 [n].
        predicted: Their mapped vectors, each mapped from other items, float64 [n, d].
        seed: Of the draw of users and items whose scores are compared.
        rows: int64 [n], the users that count, those with train interactions; all by default.
    """
    rows = torch.arange(len(users)) if rows is None else rows
    mean, covariance = _moments(users, rows)

    def deviation(vectors: Tensor) -> Tensor:
        return ((vectors @ covariance) * vectors).sum(1).clamp(min=0).sqrt().mean()

    few = torch.argsort(degrees, stable=True)[: -(-items.shape[0] // FEW)]
    mapped = deviation(predicted)
    factor = float(deviation(items[few].double()) / mapped) if mapped > 0 else 1.0
    ridge = LEAST_SHARE * covariance.diagonal().mean().clamp(min=1e-30)
    direction = torch.linalg.solve(covariance + ridge * torch.eye(mean.numel(), dtype=torch.float64), mean)
    reach = mean @ direction
    drawn = order_by_draw(STREAM_CALIBRATION, seed, torch.arange(rows.numel()))[:MOST_USERS]
    chosen = order_by_draw(STREAM_CALIBRATION, seed, torch.arange(items.shape[0]))[:MOST_ITEMS]
    of_drawn = users[rows[drawn]]
    bars, share = _bars(of_drawn, items, seen.select(drawn), few)
    if not reach > 0:  # the mean user is the zero vector, whose score no shift changes
        return Calibration(factor, torch.zeros_like(mean), 0.0, share)
    direction = direction / reach
    reached = share * min(FIRST_PLACES / items.shape[0], 1.0)  # of the pairs of a user and such an item
    level = _level(of_drawn.double(), factor * predicted[chosen], direction, bars, reached)
    return Calibration(factor, level * direction, level, share)


def _moments(users: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the mean, float64 [d], and the covariance, float64 [d, d], of some users' vectors, which are read a block at a time."""
    mean, covariance = torch.zeros(users.shape[1], dtype=torch.float64), torch.zeros(users.shape[1], users.shape[1], dtype=torch.float64)
    for block in rows.split(ROWS_A_BLOCK):
        mean += users[block].double().sum(0)
    mean /= rows.numel()
    for block in rows.split(ROWS_A_BLOCK):
        deviations = users[block].double() - mean
        covariance += deviations.T @ deviations
    return mean, covariance / rows.numel()


def _bars(users: Tensor, items: Tensor, seen: Csr, few: Tensor) -> tuple[Tensor, float]:
    """Returns the score that reaches each user's first places, float64 [u], and the share of the items `few` in them.

    The share is that of one of these items in the places, where 1 is an item's in the mean.
    """
    is_few = torch.zeros(items.shape[0], dtype=torch.bool)
    is_few[few] = True
    bars, counts = [], []
    for _, scores, ranked in top_k(users, items, min(FIRST_PLACES, items.shape[0]), seen):
        bars.append(scores[:, -1].double())
        counts.append(is_few[ranked].double().mean(1))
    return torch.cat(bars), float(torch.cat(counts).mean() * items.shape[0] / few.numel())


def _level(users: Tensor, mapped: Tensor, direction: Tensor, bars: Tensor, share: float) -> float:
    """Finds the multiple of `direction` with which a share of the scores of all users and mapped items reaches the users' bars."""
    given = users @ direction
    able = (given > 0) & bars.isfinite()
    missing = (bars[able, None] - users[able] @ mapped.T) / given[able, None]  # what each score needs to reach the bar
    if not missing.numel():
        return 0.0
    return float(missing.flatten().kthvalue(max(1, min(missing.numel(), round(share * missing.numel())))).values)
