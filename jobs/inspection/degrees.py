"""How the train interactions spread over users or items: quantiles, the Gini coefficient, what the heaviest have."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)
HEAVIEST = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)  # shares of the users or items, heaviest first
BUSY_FACTOR = 10  # a busy user has more than so many times the mean of train interactions


@dataclass(frozen=True)
class Spread:
    """The degrees of all users or of all items, those without train interactions among them.

    Attributes:
        mean: Mean degree.
        quantiles: The degrees at `QUANTILES`, each a degree that occurs: the smallest one that at least such a share does not exceed.
        gini: Gini coefficient of the degrees: 0 where all are equal, near 1 where one has everything.
        heaviest_shares: Share of the train interactions that the heaviest have, for each share of users or items in `HEAVIEST`.
    """

    mean: float
    quantiles: tuple[int, ...]
    gini: float
    heaviest_shares: tuple[float, ...]

    def quantile(self, share: float) -> int:
        """The degree at one of `QUANTILES`."""
        return self.quantiles[QUANTILES.index(share)]

    def share_of_heaviest(self, share: float) -> float:
        """The share of the train interactions that the heaviest have, for one of `HEAVIEST`."""
        return self.heaviest_shares[HEAVIEST.index(share)]


@dataclass(frozen=True)
class BusyUsers:
    """Users with more than `BUSY_FACTOR` times the mean of train interactions.

    Attributes:
        count: Their number.
        share: The share of the train interactions that they have.
    """

    count: int
    share: float


def spread_of(degrees: Tensor) -> Spread:
    """Describes the degrees, int64 [n], of which one at least is not 0."""
    ordered, total, count = degrees.sort().values, int(degrees.sum()), degrees.numel()
    places = [max(0, math.ceil(share * count) - 1) for share in QUANTILES]
    numbers = torch.arange(1, count + 1, dtype=torch.float64)
    gini = 2 * float((numbers * ordered).sum()) / (count * total) - (count + 1) / count
    from_the_top = ordered.flip(0).cumsum(0)
    heaviest = [int(from_the_top[math.ceil(share * count) - 1]) / total for share in HEAVIEST]
    return Spread(total / count, tuple(int(ordered[place]) for place in places), gini, tuple(heaviest))


def is_busy(degrees: Tensor) -> Tensor:
    """Which users are busy, bool [num_users], from the degrees of all users, int64 [num_users]."""
    return degrees > BUSY_FACTOR * degrees.double().mean()
