"""What every training stage shares: epochs with validation, selection, checkpoints and lines for people."""

import time
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..core.config import EvaluationConfig, OptimizerConfig
from ..core.graph import Csr
from ..core.ranking import evaluate
from ..core.storage import join
from ..graph_store.dataset import Dataset
from .checkpoints import Checkpoints, take_prefix, with_prefix
from .progress import Recorder, Selection
from .worker import Worker


def stage_url(run_url: str, stage: str) -> str:
    """Folder of a training stage: metrics, events, checkpoints."""
    return join(run_url, "training", stage)


class Trainer(Protocol):
    """A model in training on one worker; all calls but the constructor's are collective."""

    worker: Worker

    def open(self, epochs: range) -> None:
        """Prepares the batches of these epochs."""

    def train_epoch(self, epoch: int, recorder: Recorder | None) -> dict[str, float]:
        """One pass over the train interactions; returns `epoch`, `loss` and the mean of every loss term."""
        ...

    def close(self) -> None:
        """Ends what `open` started."""

    def validate(self) -> dict[str, float] | None:
        """The validation metrics of the weights as they are; None where there is no validation split."""

    def keep(self) -> None:
        """Remembers the weights as the best so far."""

    def save(self, checkpoints: Checkpoints, epochs: int, facts: dict) -> None:
        """Writes everything the run needs to go on after `epochs` epochs, with the loop's own facts."""

    def load(self, checkpoints: Checkpoints) -> dict | None:
        """Restores the newest checkpoint and returns its facts; None where there is none, and the start is kept as the best."""


@dataclass
class Stage:
    """One stage of a run on this worker.

    Attributes:
        name: "teacher" or "student".
        run_url: The run's folder.
        config: Epochs, patience, intervals.
        select_by: Validation metric that chooses the epoch, None without a validation split.
        lines: The `ProgressLines` actor, or None to print.
        cache_dir: Folder for local copies where the run's folder is remote.
    """

    name: str
    run_url: str
    config: OptimizerConfig
    select_by: str | None
    lines: Any
    cache_dir: str | None

    def __post_init__(self) -> None:
        self.recorder = Recorder(stage_url(self.run_url, self.name), self.name, self.lines)
        self.selection = Selection(self.select_by, self.config.patience)
        self.checkpoints = Checkpoints(join(self.recorder.url, "checkpoints"), self.cache_dir)

    def train(self, trainer: Trainer, stop_epoch: int, revision: int = 0) -> int:
        """Resumes where there is a checkpoint and trains up to `stop_epoch`, or until patience runs out.

        Args:
            revision: Of the labels; a new one gives the full patience again.

        Returns:
            Epochs trained in all.
        """
        config, selection, recorder, worker = self.config, self.selection, self.recorder, trainer.worker
        epoch = self._resume(trainer)
        selection.start_round(revision)
        trainer.open(range(epoch, stop_epoch))
        while epoch < stop_epoch and not selection.should_stop:
            started = time.monotonic()
            row = trainer.train_epoch(epoch, recorder if worker.is_first else None)
            row["seconds"] = time.monotonic() - started
            if (epoch + 1) % config.evaluate_every == 0 or epoch + 1 == stop_epoch:
                metrics = trainer.validate()
                row.update({f"validation/{name}": value for name, value in (metrics or {}).items()})
                if selection.observe(epoch, metrics):
                    trainer.keep()
            if worker.is_first:
                self._report(row)
            epoch += 1
            if epoch % config.checkpoint_every == 0:
                self.save(trainer, epoch)
        trainer.close()
        return epoch

    def save(self, trainer: Trainer, epochs: int) -> None:
        """Writes a checkpoint after `epochs` epochs."""
        facts = {"epochs": epochs, "history": self.recorder.history, "selection": self.selection.state()}
        trainer.save(self.checkpoints, epochs, facts)

    def _resume(self, trainer: Trainer) -> int:
        facts = trainer.load(self.checkpoints)
        if facts is None:
            return 0
        self.recorder.history[:] = facts["history"]
        self.selection.restore(facts["selection"])
        if trainer.worker.is_first:
            self.recorder.say(f"resuming after epoch {facts['epochs'] - 1}")
        return facts["epochs"]

    def _report(self, row: dict) -> None:
        """Records an epoch and says how it went."""
        self.recorder.record(row)
        text = f"epoch {row['epoch']:3d}  loss {row['loss']:.4f}  {row['seconds']:.1f} s"
        if "waiting" in row:
            text += f"  waiting for data {row['waiting']:.0%}"
        value = row.get(f"validation/{self.selection.metric}")
        if value is not None:
            best = f"(best {self.selection.best_value:.4f}, epoch {self.selection.best_epoch})"
            text += f"  validation {self.selection.metric} {value:.4f} {best}"
        self.recorder.say(text)


class ReplicatedTrainer:
    """Checkpoints of a trainer whose every worker holds all weights; rank 0 writes them.

    A subclass has `weights()` and `state()`, whole tensors by name, and `load_state`.
    """

    worker: Worker
    best: dict[str, Tensor]

    def weights(self) -> dict[str, Tensor]:
        """Copies of all weights, on the CPU."""
        raise NotImplementedError

    def state(self) -> dict[str, Tensor]:
        """Weights and optimizer state."""
        raise NotImplementedError

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Restores `state()`, written at any world size."""
        raise NotImplementedError

    def keep(self) -> None:
        """Remembers the weights as the best so far."""
        self.best = self.weights()

    def save(self, checkpoints: Checkpoints, epochs: int, facts: dict) -> None:
        """Writes a checkpoint; a collective call."""
        tensors = {**with_prefix("state.", self.state()), **with_prefix("best.", self.best)}
        if self.worker.is_first:
            checkpoints.save(epochs, tensors, facts)
        self.worker.barrier()

    def load(self, checkpoints: Checkpoints) -> dict | None:
        """Restores the newest checkpoint if there is one."""
        found = checkpoints.latest()
        if found is None:
            self.keep()
            return None
        tensors, facts = found
        self.load_state(take_prefix("state.", tensors))
        self.best = take_prefix("best.", tensors)
        return facts


@dataclass(frozen=True)
class Validation:
    """Validation of full vectors, sharded over the workers."""

    worker: Worker
    held_out: Csr
    train: Csr
    config: EvaluationConfig

    @staticmethod
    def of(dataset: Dataset, train: Csr, config: EvaluationConfig, worker: Worker) -> "Validation | None":
        """None where the dataset has no validation split."""
        if not dataset.has_split("validation"):
            return None
        return Validation(worker, dataset.csr("validation").to(worker.device), train, config)

    def __call__(self, users: Tensor, items: Tensor) -> dict[str, float]:
        worker = self.worker
        return evaluate(
            users,
            items,
            self.held_out,
            self.train,
            self.config.cutoffs,
            self.config.memory_mib,
            worker.rank,
            worker.world_size,
            worker.sum_,
        )


class Totals:
    """Means of loss terms over an epoch and all workers."""

    def __init__(self, worker: Worker) -> None:
        self.worker, self.loss, self.terms = worker, 0.0, {}  # type: ignore[var-annotated]

    def add(self, terms: dict[str, Tensor], share: float, where: str) -> None:
        """Adds a step's terms.

        Args:
            share: The step's share of the epoch's examples.
            where: For the message where the loss is not finite.

        Raises:
            FloatingPointError: it is not.
        """
        self.loss += share * self.worker.check_finite(total_of(terms), where)
        for name, value in terms.items():
            self.terms[name] = self.terms.get(name, 0.0) + share * value.detach().double()

    def row(self, epoch: int) -> dict[str, float]:
        """The epoch's row: `epoch`, `loss` and `loss/<term>`."""
        means = {name: total.clone() for name, total in self.terms.items()}
        self.worker.sum_(list(means.values()))
        return {"epoch": epoch, "loss": self.loss, **{f"loss/{k}": float(v) / self.worker.world_size for k, v in means.items()}}


def total_of(terms: dict[str, Tensor]) -> Tensor:
    """The loss: the sum of its terms."""
    return torch.stack(list(terms.values())).sum()
