"""Trains a task in the full engine: every worker holds all rows of the task, and steps on the whole graph."""

from collections.abc import Generator

import torch
from torch import Tensor

from ....core.rows import FrozenTables, IdTables, RowTables
from ....core.sampling import rank_slice
from ....core.spectral import WholeRows, start_spectrally
from ...artifacts.output import HistoryPart, Output, Rows, TensorRows
from ...loop.checkpoints import Checkpoints, LoopFacts
from ...tasks.base import Task
from ..examples import Examples
from ..learners import restore_state, restore_weights, take_prefix, whole_state_stream, whole_weights, with_prefix
from ..trainer import EngineTrainer
from ..validation import Validation
from ..view import REDUCED, TaskBatch, View
from .catalog import WholeCatalog


class FullTrainer(EngineTrainer):
    """Trains a task on one worker; see `loop.trainer.Trainer`. Building the trainer is a collective call.

    Args:
        task: The task to train.
        catalog: The train graph and this worker's features.
        validation: Ranks the validation users; None without a validation split.
    """

    def __init__(self, task: Task, catalog: WholeCatalog, validation: Validation | None) -> None:
        self.task, self.catalog, self.worker, self.validation = task, catalog, catalog.worker, validation
        graph, device = catalog.graph, catalog.worker.device
        self.counts = graph.num_users, graph.num_items
        task.build(catalog.dims, self.counts, lambda: catalog.inputs(None))
        self.tables = self._build_tables().to(device)
        if task.starts_spectrally:
            self._start_spectrally()
        self.learners = task.learners(self.tables)
        self.examples = Examples.of(
            self.worker, graph.users, task.train, task.seed, user_balance=task.user_balance, examples=task.examples, in_memory=True
        )
        self.best: dict[str, Tensor] = {}
        self._refresh()

    def _build_tables(self) -> RowTables:
        """Returns the task's rows as whole tables: ID vectors to be learnt, or frozen rows."""
        share = [rank_slice(count, self.worker.rank, self.worker.world_size) for count in self.counts]
        own_ids = tuple(torch.arange(run.start, run.stop) for run in share)
        rows = [make(torch.arange(count)) for make, count in zip(self.task.initial_rows(own_ids), self.counts)]  # type: ignore[arg-type]
        return IdTables(*rows) if self.task.learns_rows else FrozenTables(*rows)

    @torch.no_grad()
    def _start_spectrally(self) -> None:
        """Computes the spectral start on rank 0, whose rows all workers take: other processors would round otherwise."""
        tables = self.task.id_tables(self.tables)
        if self.worker.is_first:
            rows = WholeRows(self.catalog.graph, tables.user, tables.item)
            start_spectrally(rows, self.counts, self.task.init_scale, self.task.start_exponents)
        else:
            tables.user.zero_()
            tables.item.zero_()
        self.worker.sum_([tables.user, tables.item])

    @torch.no_grad()
    def start_epoch(self, epoch: int) -> None:
        """Sets the epoch's learning rates, and hands the task the vectors that the epoch starts with."""
        super().start_epoch(epoch)
        self.task.start_epoch(self.examples, lambda: self.task.vectors(self.view()))

    def batches(self, epoch: int) -> Generator[TaskBatch, None, None]:
        """Returns a generator of this worker's share of every step; it makes each share when it is asked for."""
        return self.task.batches(self.examples, epoch, 1)

    def train_step(self, batch: TaskBatch, epoch: int) -> dict[str, Tensor]:
        """Does one step: forward, backward and all optimizers; returns the loss terms, scalars by name."""
        view = self.view((self.task.seed, epoch * self.num_steps + batch.step))
        terms = self.task.terms(view, batch.to(self.worker.device))
        self.zero_grad()
        self.backward(terms, is_last=True)
        self.step()
        return terms

    def view(self, dropout_keys: tuple[int, ...] | None = None) -> View:
        """Returns a view of all rows that the current weights give; collective.

        Args:
            dropout_keys: (seed, step) in training, None in evaluation.
        """
        own_rows = self.task.reduce(self.catalog.inputs(dropout_keys)) if self.task.reads_features else {}
        return self.catalog.view(self.tables.user, self.tables.item, own_rows)

    def end_epoch(self) -> dict[str, float]:
        """Updates what the task derives from its weights; returns the task's further numbers for the epoch's row."""
        self._refresh()
        return self.task.epoch_facts()

    def _refresh(self) -> None:
        def reduce_all() -> dict[str, Tensor]:
            out = self.task.reduce(self.catalog.inputs(None)) if self.task.reads_features else {}
            return {name.removeprefix(REDUCED): self.catalog.gather(x) for name, x in out.items() if name.startswith(REDUCED)}

        self.task.refresh(reduce_all, self.catalog.gather)

    @torch.no_grad()
    def validate(self) -> dict[str, float] | None:
        """Computes the validation metrics of the current weights; returns None without a validation split."""
        if self.validation is None:
            return None
        users, items = self.task.vectors(self.view())["final"]
        return self.validation(lambda ids: users[ids], items, self.task.histories)

    def keep(self) -> None:
        """Remembers the weights as the best so far."""
        self.best = whole_weights(self.learners)

    def restore_best(self) -> None:
        """Restores the weights that were kept."""
        restore_weights(self.learners, self.best)
        self._refresh()

    def save(self, checkpoints: Checkpoints, epochs: int, facts: LoopFacts) -> None:
        """Writes a checkpoint after `epochs` epochs, by rank 0 alone, since every worker holds all weights."""
        tensors = {**with_prefix("state.", dict(whole_state_stream(self.learners))), **with_prefix("best.", self.best)}
        if self.worker.is_first:
            checkpoints.save(epochs, tensors, facts)
        self.worker.barrier()

    def load(self, checkpoints: Checkpoints) -> LoopFacts | None:
        """Restores the newest checkpoint and returns its facts; without one it keeps the start as the best and returns None."""
        newest = checkpoints.latest()
        if newest is None:
            self.keep()
            return None
        tensors, facts = newest
        restore_state(self.learners, take_prefix("state.", tensors))
        self.best = take_prefix("best.", tensors)
        self._refresh()
        return facts

    @torch.no_grad()
    def output(self) -> Output:
        """Restores the best weights; returns them with the vectors that they give."""
        self.restore_best()
        vectors: dict[str, tuple[Rows, Rows]] = {
            name: (TensorRows(users), TensorRows(items)) for name, (users, items) in self.task.vectors(self.view()).items()
        }
        ids = (TensorRows(self.tables.user.detach()), TensorRows(self.tables.item.detach())) if self.task.learns_rows else None
        features = self.catalog.feature_constants.tensors()
        histories = tuple(HistoryPart.of(part) for part in self.task.histories)
        return Output(self.worker, *self.counts, self.best, ids, vectors, features, self.catalog.dims, histories)
