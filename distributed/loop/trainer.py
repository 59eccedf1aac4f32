"""What the epoch loop asks of a model in training, whatever the model is and wherever its rows live."""

from collections.abc import Generator
from typing import Protocol, TypeVar

from torch import Tensor

from ..artifacts.output import Output
from ..worker import Worker
from .checkpoints import Checkpoints, LoopFacts


class Step(Protocol):
    """One worker's share of one step, or of one of its micro-batches.

    Attributes:
        step: Number within the epoch.
        size: Examples of the global batch; of all of a step's micro-batches together, each of which comes with the same number.
    """

    @property
    def step(self) -> int: ...

    @property
    def size(self) -> int: ...


StepType = TypeVar("StepType", bound=Step)


class Trainer(Protocol[StepType]):
    """A model in training on one worker; all calls but the constructor's are collective.

    Attributes:
        worker: This worker.
        num_examples: Train interactions: an epoch visits each once.
        num_steps: Steps of an epoch.
    """

    worker: Worker

    @property
    def num_examples(self) -> int: ...

    @property
    def num_steps(self) -> int: ...

    def open(self, epochs: range) -> None:
        """Prepares the batches of these epochs."""

    def close(self) -> None:
        """Ends what `open` started."""

    def start_epoch(self, epoch: int) -> None:
        """Sets the epoch's learning rates."""

    def batches(self, epoch: int) -> Generator[StepType, None, None]:
        """Returns this worker's share of every step of an epoch, in order."""

    def train_step(self, batch: StepType, epoch: int) -> dict[str, Tensor]:
        """Forward, backward and all optimizers; returns the loss terms, scalars by name."""

    def end_epoch(self) -> dict[str, float]:
        """Brings up to date what follows from the weights once an epoch; returns further numbers for the epoch's row."""

    def validate(self) -> dict[str, float] | None:
        """Returns the validation metrics of the weights as they are; None where there is no validation split."""

    def keep(self) -> None:
        """Remembers the weights as the best so far."""

    def restore_best(self) -> None:
        """Goes back to the weights that were kept."""

    def save(self, checkpoints: Checkpoints, epochs: int, facts: LoopFacts) -> None:
        """Writes everything that the run needs to go on after `epochs` epochs, with the loop's own facts."""

    def output(self) -> Output:
        """Returns the best weights, and the vectors that they give."""

    def load(self, checkpoints: Checkpoints) -> LoopFacts | None:
        """Restores the newest checkpoint and returns its facts; None where there is none, and the start is kept as the best."""
