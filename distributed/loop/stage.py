"""Runs the epoch loop, in which every stage of a run trains, in both engines."""

import contextlib
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Generic

from ...core.config import OptimizerConfig
from ...core.errors import InputError
from ...core.storage import join
from .checkpoints import Checkpoints
from .recorder import Recorder, print_line
from .selection import START, Selection, check_revision
from .totals import Totals
from .trackers import Row
from .trainer import StepType, Trainer


def stage_url(run_url: str, stage: str) -> str:
    """Returns the URL of a training stage's folder, with its metrics, events and checkpoints."""
    return join(run_url, "training", stage)


class Waiting(Generic[StepType]):
    """Yields the batches of an epoch, and measures the seconds that the loop waits for them."""

    def __init__(self, batches: Generator[StepType, None, None]) -> None:
        self._batches, self.seconds = batches, 0.0

    def __iter__(self) -> Generator[StepType, None, None]:
        with contextlib.closing(self._batches):
            while True:
                asked_at = time.monotonic()
                batch = next(self._batches, None)
                self.seconds += time.monotonic() - asked_at
                if batch is None:
                    return
                yield batch


@dataclass
class Stage:
    """Trains one stage of a run on this worker.

    Attributes:
        name: "teacher" or "student".
        run_url: The run's folder.
        config: Settings of epochs, patience and intervals.
        select_by: The validation metric that chooses the epoch; None without a validation split.
        show: Shows a line to the person who started the run.
        trackers: Names of the trackers that get every epoch's row.
        cache_dir: Folder for local copies where the run's folder is remote.
        ends_early: Whether training is meant to end before it has converged, so that nothing is said of it.
    """

    name: str
    run_url: str
    config: OptimizerConfig
    select_by: str | None
    show: Callable[[str], None] = print_line
    trackers: Sequence[str] = ()
    cache_dir: str | None = None
    ends_early: bool = False

    def __post_init__(self) -> None:
        self.recorder = Recorder(stage_url(self.run_url, self.name), self.name, self.show, self.trackers)
        self.selection = Selection(self.select_by, self.config.patience)
        self.checkpoints = Checkpoints(join(self.recorder.url, "checkpoints"), self.cache_dir)

    def train(self, trainer: Trainer, stop_epoch: int, revision: int = 0) -> int:
        """Resumes from a checkpoint if there is one, and trains up to `stop_epoch` or until patience runs out.

        Args:
            trainer: The model in training.
            stop_epoch: The epoch, counted from 0, before which training ends.
            revision: Revision of the labels; a new one gives the full patience again.

        Returns:
            The number of epochs trained, those before the checkpoint included.

        Raises:
            InputError: the checkpoint is of a later round, or a later round has no checkpoint to go on from.
        """
        config, selection = self.config, self.selection
        epoch = self._resume(trainer, revision)
        selection.start_round(revision)
        if not epoch and selection.metric is not None:
            self._validate_start(trainer)
        trainer.open(range(epoch, stop_epoch))
        try:
            while epoch < stop_epoch and not selection.should_stop:
                started = time.monotonic()
                row = self._train_epoch(trainer, epoch)
                row["seconds"] = time.monotonic() - started
                if (epoch + 1) % config.evaluate_every == 0 or epoch + 1 == stop_epoch:
                    metrics = trainer.validate()
                    row.update({f"validation/{name}": value for name, value in (metrics or {}).items()})
                    if selection.observe(epoch, metrics):
                        trainer.keep()
                if trainer.worker.is_first:
                    self._report(row)
                epoch += 1
                if epoch % config.checkpoint_every == 0:
                    self.save(trainer, epoch)
            self._say_if_cut_off(trainer, epoch)
        finally:
            trainer.close()
            self.recorder.close()
        return epoch

    def _say_if_cut_off(self, trainer: Trainer, epochs: int) -> None:
        """Says where the largest number of epochs ended training while validation was still getting better."""
        if self.ends_early or not trainer.worker.is_first or self.selection.metric is None:
            return
        if self.selection.best_epoch == self.config.epochs - 1 < epochs:
            limit = f"{self.name}.train.epochs={self.config.epochs}"
            self.recorder.say(f"the last epoch was the best, so {limit} ended training before it had converged: raise that")

    def _validate_start(self, trainer: Trainer) -> None:
        """Validates the weights before the first step, which the trainer keeps as the best so far: training cannot end below them."""
        metrics = trainer.validate()
        if metrics is not None and self.selection.observe(START, metrics) and trainer.worker.is_first:
            self.recorder.say(f"before the first step  validation {self.selection.metric} {self.selection.best_value:.4f}")

    def _train_epoch(self, trainer: Trainer, epoch: int) -> Row:
        """Passes once over the train interactions; returns the epoch's row."""
        trainer.start_epoch(epoch)
        totals, started = Totals(trainer.worker), time.monotonic()
        waiting = Waiting(trainer.batches(epoch))
        with contextlib.closing(iter(waiting)) as batches:
            for batch in batches:
                terms = trainer.train_step(batch, epoch)
                totals.add(terms, batch.size / trainer.num_examples, f"{self.name} epoch {epoch}, step {batch.step}")
                if trainer.worker.is_first:
                    self.recorder.say_within_epoch(epoch, batch.step + 1, trainer.num_steps, started)
        share = waiting.seconds / max(time.monotonic() - started, 1e-9)
        return {**totals.row(epoch), "waiting": share, **trainer.end_epoch()}

    def save(self, trainer: Trainer, epochs: int) -> None:
        """Writes a checkpoint after `epochs` epochs."""
        trainer.save(self.checkpoints, epochs, {"epochs": epochs, "history": self.recorder.history, "selection": self.selection.state()})

    def _resume(self, trainer: Trainer, revision: int) -> int:
        facts = trainer.load(self.checkpoints)
        if facts is None and revision:
            raise InputError(f"{self.run_url}: no checkpoint of the student for the round of revision {revision}; add run.redo=distill")
        if facts is None:
            return 0
        check_revision(facts["selection"]["revision"], range(revision + 1), self.run_url)
        self.recorder.history[:] = facts["history"]
        self.selection.restore(facts["selection"])
        if trainer.worker.is_first:
            self.recorder.say(f"resuming after epoch {facts['epochs'] - 1}")
        return facts["epochs"]

    def _report(self, row: Row) -> None:
        """Records an epoch and shows a line with its numbers."""
        self.recorder.record(row)
        text = f"epoch {row['epoch']:3.0f}  loss {row['loss']:.4f}  {row['seconds']:.1f} s  waiting for data {row['waiting']:.0%}"
        value = row.get(f"validation/{self.selection.metric}")
        if value is not None:
            best = f"(best {self.selection.best_value:.4f}, {self.selection.chosen})"
            text += f"  validation {self.selection.metric} {value:.4f} {best}"
        self.recorder.say(text)
