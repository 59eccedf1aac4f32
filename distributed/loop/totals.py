"""Averages loss terms over an epoch."""

import torch
from torch import Tensor

from ..worker import Worker


def total_of(terms: dict[str, Tensor]) -> Tensor:
    """Returns the sum of the loss terms, which is the loss."""
    return torch.stack(list(terms.values())).sum()


class Totals:
    """Computes the means of the loss and of its terms over an epoch and all workers."""

    def __init__(self, worker: Worker) -> None:
        self.worker, self.loss = worker, 0.0
        self.terms: dict[str, Tensor] = {}

    def add(self, terms: dict[str, Tensor], share: float, where: str) -> None:
        """Adds the terms of a step or micro-batch; a collective call.

        Args:
            terms: Scalars by name.
            share: The step's share of the epoch's examples.
            where: Names epoch and step in the message of an error.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        self.loss += share * self.worker.check_finite(total_of(terms), where)
        for name, value in terms.items():
            self.terms[name] = self.terms.get(name, torch.zeros((), dtype=torch.float64)) + share * value.detach().double()

    def row(self, epoch: int) -> dict[str, float]:
        """Returns the epoch's row with `epoch`, `loss` and `loss/<term>`; a collective call."""
        means = {name: total.clone() for name, total in self.terms.items()}
        self.worker.sum_(list(means.values()))
        return {"epoch": epoch, "loss": self.loss, **{f"loss/{k}": float(v) / self.worker.world_size for k, v in means.items()}}
