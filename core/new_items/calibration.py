"""Brings mapped vectors to the scale of the student's, so that new items rank sensibly beside the others (docs/method.md 11.4)."""

from dataclasses import dataclass

import torch
from torch import Tensor

FEW = 3  # the items of few interactions are the third with the fewest
LEAST_SHARE = 1e-6  # of the mean variance, added where users' vectors have directions without any


@dataclass(frozen=True)
class Calibration:
    """Holds f -> factor · f + shift; within the new items no user's ranking changes by it.

    Attributes:
        factor: A number above 0.
        shift: float64 [d], the same for all items: it adds to all users' scores the same but for the least variance there can be.
        mean_shift: What `shift` adds to the mean user's score.
    """

    factor: float
    shift: Tensor
    mean_shift: float


def calibrate(users: Tensor, items: Tensor, degrees: Tensor, predicted: Tensor) -> Calibration:
    """Computes the calibration that gives mapped items the scores of items of few interactions.

    An item's scores have a mean over the users, <v, ū>, and a deviation, sqrt(v^T C v), with the mean ū and the covariance C of the users'
    vectors. Over the mapped items, each mapped from the others, and after calibration, the mean of both is that over the student's own
    vectors of the third of the items with the fewest train interactions.

    Args:
        users: The student's vectors of the users with train interactions, float [num, d].
        items: The student's vectors of the fitted items, float [n, d].
        degrees: Numbers of train interactions of these items, int64 [n].
        predicted: Their mapped vectors, float64 [n, d].
    """
    wide = users.double()
    mean = wide.mean(0)
    covariance = (wide - mean).T @ (wide - mean) / wide.shape[0]

    def deviation(vectors: Tensor) -> Tensor:
        return ((vectors @ covariance) * vectors).sum(1).clamp(min=0).sqrt().mean()

    few = items[torch.argsort(degrees, stable=True)[: -(-items.shape[0] // FEW)]].double()
    mapped = deviation(predicted)
    factor = float(deviation(few) / mapped) if mapped > 0 else 1.0
    mean_shift = float((few @ mean).mean() - factor * (predicted @ mean).mean())
    ridge = LEAST_SHARE * covariance.diagonal().mean().clamp(min=1e-30)
    direction = torch.linalg.solve(covariance + ridge * torch.eye(mean.numel(), dtype=torch.float64), mean)
    reach = mean @ direction  # 0 only where the mean user is the zero vector, whose score no shift can change
    shift = mean_shift * direction / reach if reach > 0 else torch.zeros_like(mean)
    return Calibration(factor, shift, mean_shift if reach > 0 else 0.0)
