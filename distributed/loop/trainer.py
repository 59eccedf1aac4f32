"""Defines what the epoch loop asks of a model in training, whatever the model is and wherever its rows live."""

from collections.abc import Generator
from typing import NoReturn, Protocol, TypeVar

from torch import Tensor

from ..artifacts.output import Output
from ..worker import Worker
from .checkpoints import Checkpoints, LoopFacts


class Step(Protocol):
    """Describes one worker's share of a step, or of one of the step's micro-batches.

    Attributes:
        step: The step's number within the epoch.
        size: The number of examples in the step's global batch, the same for all micro-batches of the step.
    """

    @property
    def step(self) -> int: ...

    @property
    def size(self) -> int: ...


StepType = TypeVar("StepType", bound=Step)


class Trainer(Protocol[StepType]):
    """Describes a model in training on one worker; all calls are collective.

    Attributes:
        worker: This worker.
        num_examples: The number of train interactions, each of which an epoch visits once.
        num_steps: The number of steps in an epoch.
    """

    worker: Worker

    @property
    def num_examples(self) -> int: ...

    @property
    def num_steps(self) -> int: ...

    def open(self, epochs: range) -> None:
        """Prepares the source of the batches of these epochs."""

    def close(self) -> None:
        """Closes the source that `open` prepared."""

    def start_epoch(self, epoch: int) -> None:
        """Sets the epoch's learning rates."""

    def batches(self, epoch: int) -> Generator[StepType, None, None]:
        """Returns a generator of this worker's share of every step (or micro-batch) of an epoch, in order."""

    def train_step(self, batch: StepType, epoch: int) -> dict[str, Tensor]:
        """Computes forward and backward, and steps all optimizers when a step is complete; returns the loss terms, scalars by name."""

    def end_epoch(self) -> dict[str, float]:
        """Updates what the model derives from its weights once an epoch; returns further numbers for the epoch's row."""

    def validate(self) -> dict[str, float] | None:
        """Computes the validation metrics of the current weights; returns None without a validation split."""

    def keep(self) -> None:
        """Remembers the weights as the best so far."""

    def save(self, checkpoints: Checkpoints, epochs: int, facts: LoopFacts) -> None:
        """Writes everything that the run needs to go on after `epochs` epochs, with the loop's own facts."""

    def output(self) -> Output:
        """Restores the best weights; returns them with the vectors that they give."""

    def load(self, checkpoints: Checkpoints) -> LoopFacts | None:
        """Restores the newest checkpoint and returns its facts; without one it keeps the start as the best and returns None."""


class WithoutEpochs:
    """Is the part that `Trainer`s share whose model is there before the loop begins: it takes no step, and the loop but validates it."""

    num_examples = num_steps = 0

    def open(self, epochs: range) -> None:
        """Does nothing: there are no epochs."""

    def close(self) -> None:
        """Does nothing."""

    def start_epoch(self, epoch: int) -> NoReturn:
        raise AssertionError("there are no epochs")

    def batches(self, epoch: int) -> Generator[NoReturn, None, None]:
        raise AssertionError("there are no epochs")

    def train_step(self, batch: object, epoch: int) -> NoReturn:
        raise AssertionError("there are no epochs")

    def end_epoch(self) -> NoReturn:
        raise AssertionError("there are no epochs")

    def keep(self) -> None:
        """Does nothing: there is one model."""

    def save(self, checkpoints: Checkpoints, epochs: int, facts: LoopFacts) -> None:
        """Does nothing: the same vectors are made again in one go."""

    def load(self, checkpoints: Checkpoints) -> LoopFacts | None:
        """Returns None: there is no epoch to go on from."""
