"""Holds what the trainers of both engines have in common: the task's examples, its learners, and the backward pass."""

from torch import Tensor

from ..loop.totals import total_of
from ..tasks.base import Task
from .examples import Examples
from .learners import Learner


class EngineTrainer:
    """Trains a task on one worker; see `loop.trainer.Trainer`. An engine's trainer is a subclass.

    Attributes:
        task: The task to train.
        examples: The train interactions as examples of steps.
        learners: The task's replicated weights with their optimizers.
    """

    task: Task
    examples: Examples
    learners: list[Learner]

    @property
    def num_examples(self) -> int:
        """Returns the number of train interactions."""
        return self.examples.num_examples

    @property
    def num_steps(self) -> int:
        """Returns the number of steps in an epoch."""
        return self.examples.num_steps

    def open(self, epochs: range) -> None:
        """Prepares the source of the batches of these epochs."""
        self.task.open(epochs)

    def close(self) -> None:
        """Closes the source that `open` prepared."""
        self.task.close()

    def decay(self, epoch: int) -> float:
        """Returns the factor of an epoch's learning rates."""
        return self.task.train.lr_decay**epoch

    def start_epoch(self, epoch: int) -> None:
        """Sets the epoch's learning rates."""
        for learner in self.learners:
            learner.scale_rates(self.decay(epoch))

    def zero_grad(self) -> None:
        """Clears the gradients of the last step."""
        for learner in self.learners:
            learner.zero_grad()

    def backward(self, terms: dict[str, Tensor], is_last: bool) -> None:
        """Backpropagates the sum of the loss terms.

        Args:
            terms: Scalars by name.
            is_last: Whether this is the step's last micro-batch.
        """
        if self.task.reduction is not None:
            self.task.reduction.backward(total_of(terms), is_last)
        else:
            total_of(terms).backward()

    def step(self) -> None:
        """Takes the step of every optimizer."""
        for learner in self.learners:
            learner.step()
