"""Trains a task in the sampled engine: every worker steps on its blocks, and keeps, saves and restores the rows that it owns."""

from collections.abc import Generator

import torch
from torch import Tensor

from ....core.sides import ITEMS, SIDE_NAMES, SIDES, USERS
from ....core.spectral import start_spectrally
from ....graph_store.backend import GraphConnection
from ....graph_store.dataset import Dataset
from ...artifacts.output import Output
from ...loop.checkpoints import Checkpoints, LoopFacts
from ...messages import Job
from ...prefetch import Prefetched
from ...tasks.base import Task
from ...tasks.layers import Tables
from ...worker import Worker
from ..examples import Examples
from ..learners import restore_weights, whole_weights
from ..trainer import EngineTrainer
from ..view import ID, PROMPT, REDUCED, View
from .batches import BatchMaker, SampledBatch
from .exchange import Traffic
from .features import ShardedFeatures
from .inference import ShardedInference, chunks
from .ranking import ShardedValidation
from .served import ServedRows, summed_gradients
from .sharded_blocks import ShardedBlocks, ShardedRows
from .shards import load_shards, save_shards
from .sparse_adam import AdamTable

BATCH_SECONDS = 300.0


class SampledTrainer(EngineTrainer):
    """Trains a task on one worker; see `loop.trainer.Trainer`. Building the trainer is a collective call.

    Args:
        task: The task to train.
        job: The job, whose settings of cluster, sampling and evaluation are read.
        connection: Connection to the graph.
        worker: This worker.
        dataset: The dataset whose validation split chooses the epoch; None to train without validation.
    """

    def __init__(self, task: Task, job: Job, connection: GraphConnection, worker: Worker, dataset: Dataset | None) -> None:
        self.task, self.connection, self.worker, self.sampling = task, connection, worker, job.sampling
        self.num_parts = job.cluster.micro_batches if task.stage == "teacher" else 1
        self.batch_seconds = BATCH_SECONDS + job.cluster.start_timeout  # a stream of labels has its own deadline, which should end first
        self.counts = connection.num_users, connection.num_items
        self.examples = Examples.of(
            worker, connection.train_rows(), task.train, task.seed, user_balance=task.user_balance, examples=task.examples, in_memory=False
        )
        names = [f"{task.stage}_ids_{SIDE_NAMES[side]}" for side in SIDES]
        self.ids = [AdamTable(connection, side, names[side], task.dim, task.learns_rows) for side in SIDES]
        self.features = self._build_features(task)
        self._fill_tables()
        self.learners = task.learners(None)
        self.inference = ShardedInference(connection, worker, self.ids, self.features, task.stage)
        self._propagate_tokens()
        if task.starts_spectrally:
            rows = ShardedRows(ShardedBlocks(connection, worker, task.stage), self.inference.ids)
            start_spectrally(rows, self.counts, task.init_scale, task.start_exponents)
        self.traffic, self.num_steps_taken = Traffic(), 0
        self.maker = BatchMaker(connection, worker, self.examples, self.sampling, self.traffic, worker.new_group())
        self.validation = ShardedValidation.of(dataset, worker, self.examples.train, job.evaluation, task.vector_dims["final"])
        self.best: dict[str, Tensor] = {}
        self._sent = 0
        self._served: list[tuple[ServedRows, ServedRows]] = []  # for each micro-batch of the step so far

    def _build_features(self, task: Task) -> ShardedFeatures | None:
        features = None
        if task.reads_features:
            features = ShardedFeatures.of(self.connection, self.worker, task.dim, task.whitens)
        none = torch.zeros(0, dtype=torch.int64)
        task.build(features.dims if features else {}, self.counts, lambda: features.inputs(none, none, None))  # type: ignore[union-attr]
        return features

    def _fill_tables(self) -> None:
        own_ids = self.connection.own_ids(USERS), self.connection.own_ids(ITEMS)
        for side, rows in zip(SIDES, self.task.initial_rows(own_ids)):
            for places in chunks(own_ids[side].numel()):
                self.ids[side].tables["weight"].write(places, rows(own_ids[side][places]))

    def _propagate_tokens(self) -> None:
        """Computes the users' tokens, h_U = Ã h_I."""
        if self.features is not None:
            self.inference.propagate(self.features.tokens, self.features.tokens, USERS)

    def start_epoch(self, epoch: int) -> None:
        """Sets the epoch's learning rates, and notes what has been sent before it."""
        super().start_epoch(epoch)
        self._sent = self.traffic.sent

    def batches(self, epoch: int) -> Generator[SampledBatch, None, None]:
        """Yields this worker's share of every micro-batch, made ahead in the background."""
        what = "a batch of neighbour blocks from the graph servers"
        made_on_demand = self.maker.batches(self.task, epoch, self.num_parts)
        batches = Prefetched(made_on_demand, self.sampling.prefetch, self.batch_seconds, what)
        try:
            yield from batches
        finally:
            batches.close()

    def view(self, batch: SampledBatch, dropout_keys: tuple[int, ...] | None) -> tuple[View, tuple[ServedRows, ServedRows]]:
        """Returns a view of the rows that a batch reads, and the ID rows that this worker serves to all workers; a collective call."""
        device, exchanges, is_learnt = self.worker.device, batch.exchanges, self.task.learns_rows
        rows_of = [table.read(x.served).to(device).requires_grad_(is_learnt) for x, table in zip(exchanges, self.ids)]
        served = tuple(ServedRows(x.served, own) for x, own in zip(exchanges, rows_of))
        answers: list[dict[str, Tensor]] = [{ID: served[side].rows} for side in SIDES]
        if self.features is not None:
            served_rows = self.task.reduce(self.features.inputs(exchanges[USERS].served, exchanges[ITEMS].served, dropout_keys))
            answers[ITEMS].update({name: rows for name, rows in served_rows.items() if name.startswith(REDUCED)})
            for side in SIDES if self.task.sends_prompt else ():
                answers[side][PROMPT] = served_rows[SIDE_NAMES[side]]
        rows = []
        for exchange, answer in zip(exchanges, answers):
            widths = [part.shape[1] for part in answer.values()]
            rows.append(dict(zip(answer, exchange.gather(torch.cat(list(answer.values()), 1)).split(widths, 1))))
        blocks = batch.blocks.to(device)
        return View(blocks, rows[USERS], rows[ITEMS], blocks.items[: blocks.num_items[0]]), served  # type: ignore[return-value]

    def loss_terms(self, batch: SampledBatch, epoch: int) -> tuple[dict[str, Tensor], tuple[ServedRows, ServedRows]]:
        """Computes the loss terms of this worker's share; returns them and the ID rows that the worker serves; a collective call."""
        view, served = self.view(batch, (self.task.seed, epoch * self.num_steps + batch.step))
        return self.task.terms(view, batch.own.to(self.worker.device)), served

    def train_step(self, batch: SampledBatch, epoch: int) -> dict[str, Tensor]:
        """Computes forward and backward of a micro-batch, and steps all optimizers after the step's last micro-batch."""
        terms, served = self.loss_terms(batch, epoch)
        if not self._served:
            self.zero_grad()
        self.backward(terms, batch.own.is_last)
        self._served.append(served)
        if batch.own.is_last:
            self.step()
            self._update_tables(epoch)
            self._served = []
        return terms

    def _update_tables(self, epoch: int) -> None:
        """Takes a step of sparse Adam on the ID rows that served the step's micro-batches, with the gradient of the mean loss."""
        self.num_steps_taken += 1
        for table, parts in zip(self.ids, zip(*self._served)):
            with_grad = [rows for rows in parts if rows.rows.grad is not None and rows.places.numel()]
            if with_grad:
                places, grad = summed_gradients(with_grad)
                grad = grad.cpu() / self.worker.world_size
                touched = grad.abs().amax(1) != 0  # rows are also served for the feature decay, and at levels that features alone need
                if not touched.all():
                    places, grad = places[touched], grad[touched]
                table.step(places, grad, self.task.train.learning_rate * self.decay(epoch), self.num_steps_taken)

    def end_epoch(self) -> dict[str, float]:
        """Returns further numbers for the epoch's row: the MiB that this worker has sent to others, and the task's own."""
        return {"mib_sent": (self.traffic.sent - self._sent) / 2**20, **self.task.epoch_facts()}

    @torch.no_grad()
    def validate(self) -> dict[str, float] | None:
        """Infers all vectors exactly and computes the validation metrics; returns None without a validation split."""
        if self.validation is None:
            return None
        return self.validation(*self.infer()["final"])

    def keep(self) -> None:
        """Remembers the weights as the best so far."""
        for table in self.ids:
            table.copy("weight", "best")
        self.best = whole_weights(self.learners)

    def restore_best(self) -> None:
        """Restores the weights that were kept."""
        for table in self.ids:
            table.copy("best", "weight")
        restore_weights(self.learners, self.best)
        self.worker.barrier()

    def save(self, checkpoints: Checkpoints, epochs: int, facts: LoopFacts) -> None:
        """Writes a checkpoint: every worker its own rows, and rank 0 the replicated weights and their optimizers."""
        facts = {**facts, "steps": self.num_steps_taken}
        save_shards(checkpoints, epochs, facts, self.ids, self.connection.owners, self.learners, self.best, self.worker)

    def load(self, checkpoints: Checkpoints) -> LoopFacts | None:
        """Restores the newest checkpoint that all workers find complete, and returns its facts.

        Every worker reads its own rows, whichever worker wrote them. Without a checkpoint the start is kept as the best, and the result is
        None.
        """
        restored = load_shards(checkpoints, self.ids, self.connection.owners, self.learners, self.worker)
        if restored is None:
            self.keep()
            return None
        facts, self.best = restored
        self.num_steps_taken = facts["steps"]
        return facts

    @torch.no_grad()
    def output(self) -> Output:
        """Restores the best weights; returns them with the vectors that they give, which stay sharded."""
        self.restore_best()
        vectors = self.infer()
        features, dims = (self.features.constants.tensors(), self.features.dims) if self.features else ({}, {})
        return Output(self.worker, *self.counts, self.best, self.inference.ids, dict(vectors), features, dims)

    @torch.no_grad()
    def infer(self) -> dict[str, Tables]:
        """Infers all vectors of the current weights exactly; returns the sharded tables that hold them, by name; a collective call."""
        self.task.infer(self.inference)
        return {name: self.inference.tables(name, dim) for name, dim in self.task.vector_dims.items()}
