"""Chooses the epoch of a training stage that is kept, and decides when training ends."""

import math
from dataclasses import dataclass
from typing import TypedDict

from ...core.errors import InputError

START = -1  # in place of an epoch: the weights before the first step


def check_revision(found: int, expected: range, run_url: str) -> None:
    """Checks the revision of a student's checkpoint, from which a round goes on, or against which the prompt is tuned.

    Args:
        found: The revision whose labels the student has learnt from last.
        expected: The revisions that this may be.
        run_url: The run's folder, for the message.

    Raises:
        InputError: it is another one.
    """
    if found not in expected:
        raise InputError(
            f"{run_url}: the student's newest checkpoint has learnt from labels of revision {found}, and revision {expected[-1]} is its "
            "turn; a student does not mix revisions out of order: add run.redo=distill"
        )


class SelectionState(TypedDict):
    """Holds a `Selection` as a checkpoint saves it; JSON-able. `best_value` is None where it is infinite."""

    best_value: float | None
    best_epoch: int
    num_bad: int
    revision: int


@dataclass
class Selection:
    """Tracks the best epoch by the validation metric; without a validation split every epoch counts as better than those before it.

    Attributes:
        metric: The validation metric, such as "recall@20"; None without a validation split.
        patience: The number of evaluations in a row without a better value after which training stops.
        best_value: The metric's value at the best epoch; -inf before the first evaluation, and inf after it without a metric.
        best_epoch: The best epoch, from 0; -1 (`START`) where nothing was better than the weights before the first step.
        num_bad: The number of evaluations since the best one, or since the round began.
        revision: Revision of the labels of the current round.
    """

    metric: str | None
    patience: int
    best_value: float = -math.inf
    best_epoch: int = START
    num_bad: int = 0
    revision: int = 0

    def start_round(self, revision: int) -> None:
        """Gives a new round of labels the full patience; does nothing where an interrupted round goes on."""
        if revision != self.revision:
            self.revision, self.num_bad = revision, 0

    def observe(self, epoch: int, metrics: dict[str, float] | None) -> bool:
        """Takes the result of an evaluation; returns whether its epoch is the best so far.

        Args:
            epoch: The epoch, from 0, or `START`.
            metrics: The epoch's validation metrics; None without a validation split.
        """
        value = metrics[self.metric] if self.metric and metrics else math.inf
        if self.metric is None or value > self.best_value:
            self.best_value, self.best_epoch, self.num_bad = value, epoch, 0
            return True
        self.num_bad += 1
        return False

    @property
    def should_stop(self) -> bool:
        """Returns whether patience has run out; never without a validation split."""
        return self.metric is not None and self.num_bad >= self.patience

    @property
    def chosen(self) -> str:
        """Returns what was chosen, in words."""
        return "the start" if self.best_epoch == START else f"epoch {self.best_epoch}"

    def state(self) -> SelectionState:
        """Returns the state that a checkpoint saves."""
        best = self.best_value if math.isfinite(self.best_value) else None
        return {"best_value": best, "best_epoch": self.best_epoch, "num_bad": self.num_bad, "revision": self.revision}

    def restore(self, state: SelectionState) -> None:
        """Restores what `state` returned."""
        best = state["best_value"]
        self.best_value = best if best is not None else (-math.inf if self.metric else math.inf)
        self.best_epoch, self.num_bad, self.revision = state["best_epoch"], state["num_bad"], state["revision"]
