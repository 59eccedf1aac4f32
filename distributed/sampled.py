"""What the sampled engine's teacher and student share: sharded ID tables, examples, exchanges, epochs, and their checkpoints.

A step on every worker: blocks around its share of the batch (made in the background); the ids of their input rows go to the rows' owners;
d-sized rows come back, gradients return the same way, and owners update the ID rows that were touched.
"""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from ..core.blocks import Blocks, without_pairs
from ..core.config import EvaluationConfig, OptimizerConfig, SamplingConfig
from ..core.graph import Csr
from ..core.ranking import rank_rows
from ..core.sampling import UnseenItems, UserWeights, epoch_order, share_of_part
from ..core.sides import ITEMS, SIDE_NAMES, USERS
from ..core.teacher import initial_rows
from ..graph_store.backend import GraphConnection, RowTable
from ..graph_store.dataset import Dataset
from ..graph_store.ownership import Piece
from .checkpoints import Checkpoints
from .exchange import RowExchange, Traffic
from .layerwise import chunks
from .prefetch import Prefetched
from .progress import Recorder
from .sparse_adam import AdamTable
from .training import Totals
from .worker import Worker

BATCH_SECONDS = 300.0
CHECKPOINT_ROWS = 1 << 16


@dataclass(frozen=True)
class ServedRows:
    """ID rows that this worker serves in a step.

    Attributes:
        places: int64 [n], among its own rows.
        rows: float32 [n, d], a leaf whose gradient is the sum over all workers' losses.
    """

    places: Tensor
    rows: Tensor


def summed_gradients(served: list[ServedRows]) -> tuple[Tensor, Tensor]:
    """Distinct places, and the sum of their rows' gradients over micro-batches."""
    if len(served) == 1:
        return served[0].places, served[0].rows.grad  # type: ignore[return-value]
    places, at = torch.unique(torch.cat([rows.places for rows in served]), return_inverse=True)
    grads = torch.cat([rows.rows.grad for rows in served])  # type: ignore[misc]
    return places, grads.new_zeros(places.numel(), grads.shape[1]).index_add_(0, at.to(grads.device), grads)


class SampledModel:
    """A model with sharded ID tables on one worker.

    A subclass has `batches`, `train_step` and the replicated weights: `dense_weights`, `dense_state`, `load_dense`.

    Args:
        client: Connection to the graph; creating the tables is a collective call.
        worker: This worker.
        sampling: Fan-outs and prefetching.
        train: Epochs, batches, learning rate.
        dim, init_scale: Of the ID tables.
        user_balance: Exponent of the examples' weights.
        seed: Seed of everything random.
    """

    stage = ""

    def __init__(
        self, client: GraphConnection, worker: Worker, sampling: SamplingConfig, train: OptimizerConfig, dim: int, init_scale: float,
        user_balance: float, seed: int,
    ) -> None:  # fmt: skip
        self.client, self.worker, self.sampling, self.train_config, self.seed = client, worker, sampling, train, seed
        self.train = client.train_rows()
        self.user_weights = UserWeights.of(self.train.pointers, user_balance)
        self.own_ids = [client.own_ids(side) for side in (USERS, ITEMS)]
        self.ids = [AdamTable(client, side, f"{self.stage}_ids_{side}", dim) for side in (USERS, ITEMS)]
        for side in (USERS, ITEMS):
            for places in chunks(self.own_ids[side].numel()):
                rows = initial_rows(SIDE_NAMES[side], self.own_ids[side][places], dim, init_scale, seed)
                self.ids[side].tables["weight"].write(places, rows)
        self.traffic, self.num_steps_taken = Traffic(), 0
        self.group = worker.new_group()  # of the threads that make batches

    @property
    def batch_seconds(self) -> float:
        """Longest wait for a batch."""
        return BATCH_SECONDS

    @property
    def num_examples(self) -> int:
        """Train interactions."""
        return self.train.columns.numel()

    @property
    def num_steps(self) -> int:
        """Steps of an epoch."""
        return -(-self.num_examples // self.train_config.batch_size)

    def size_of(self, step: int) -> int:
        """Examples in a step's global batch."""
        return min(self.train_config.batch_size, self.num_examples - step * self.train_config.batch_size)

    def examples(self, epoch: int, step: int, share: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Some of a step's examples: their indices, users and positives, int64 dataset indices."""
        first = step * self.train_config.batch_size
        examples = epoch_order(self.num_examples, self.seed, epoch, slice(first + share.start, first + share.stop))
        users = torch.searchsorted(self.train.pointers, examples, right=True) - 1
        return examples, users, self.train.columns[examples].long()

    def weights_of(self, users: Tensor) -> Tensor | None:
        """Weights of some examples by their users, None where all are 1."""
        return self.user_weights(users) if self.user_weights else None

    def share_of(self, step: int, part: int = 0, num_parts: int = 1) -> slice:
        """This worker's share of a step's global batch, or of one of its parts."""
        return share_of_part(self.size_of(step), part, num_parts, self.worker.rank, self.worker.world_size)

    def blocks(self, users: Tensor, items: Tensor, num_hops: int, epoch: int, step: int, examples_epoch: int) -> Blocks:
        """Blocks around some users and items, int64 distinct dataset indices.

        Args:
            examples_epoch: Whose order the step's examples are in; the draws are those of `epoch`.
        """
        sampler = self.client.neighbours.sampler(self.sampling.fan_outs_of(num_hops), self.seed, epoch * self.num_steps + step)
        if self.sampling.exclude_seed_edges:  # of the whole batch: what a worker sees does not depend on how many there are
            _, seed_users, positives = self.examples(examples_epoch, step, slice(0, self.size_of(step)))
            sampler = without_pairs(sampler, seed_users, positives, self.train.num_columns)
        return Blocks.sample(sampler, users, items, num_hops)

    def unseen(self, users: Tensor, examples: Tensor, count: int, epoch: int) -> Tensor:
        """Uniform items that the users have not seen, int64 [n, count]; drawn from the users' own rows."""
        distinct, rows = torch.unique(users, return_inverse=True)
        return UnseenItems(self.train.select(distinct), distinct).draw(rows, examples, count, self.seed, epoch)

    def ask(self, users: Tensor, items: Tensor) -> list[RowExchange]:
        """Asks for the rows of some users and items; collective in the background's group."""
        owners = self.client.owners
        return [RowExchange(self.worker, owners, side, ids, self.traffic, self.group) for side, ids in ((USERS, users), (ITEMS, items))]

    def serve(self, exchanges: list[RowExchange]) -> list[ServedRows]:
        """The ID rows that this worker serves to all, as leaves for gradients."""
        rows = (table.read(x.served).to(self.worker.device).requires_grad_() for x, table in zip(exchanges, self.ids))
        return [ServedRows(x.served, r) for x, r in zip(exchanges, rows)]

    def update(self, served: list[list[ServedRows]], learning_rate: float) -> None:
        """Sparse Adam on the rows served to a step's micro-batches, with their summed gradients: that of the mean loss."""
        self.num_steps_taken += 1
        for table, parts in zip(self.ids, zip(*served)):
            with_grad = [rows for rows in parts if rows.rows.grad is not None and rows.places.numel()]
            if with_grad:
                places, grad = summed_gradients(with_grad)
                grad = grad.cpu() / self.worker.world_size
                touched = grad.abs().amax(1) != 0  # served also for the feature decay, or at levels that only the features need
                if not touched.all():
                    places, grad = places[touched], grad[touched]
                table.step(places, grad, learning_rate, self.num_steps_taken)

    def batches(self, epoch: int) -> Iterator[Any]:
        """This worker's share of every step; reads the graph, not the weights, so it runs ahead in the background."""
        raise NotImplementedError

    def train_step(self, batch: Any, epoch: int, learning_rate: float) -> dict[str, Tensor]:
        """Forward, backward and all optimizers; collective. Returns the loss terms."""
        raise NotImplementedError

    def decay_rates(self, factor: float) -> None:
        """Scales the learning rates of the replicated weights."""
        raise NotImplementedError

    def dense_weights(self) -> dict[str, Tensor]:
        """Copies of the replicated weights, on the CPU; collective."""
        raise NotImplementedError

    def load_dense_weights(self, weights: dict[str, Tensor]) -> None:
        """Restores `dense_weights()`; collective."""
        raise NotImplementedError

    def dense_state(self) -> Iterator[tuple[str, Tensor]]:
        """Replicated weights and their optimizer's state, by name; collective, as every worker takes one after the other."""
        raise NotImplementedError

    def load_dense_state(self, state: dict[str, Tensor]) -> None:
        """Restores `dense_state()`; collective."""
        raise NotImplementedError

    def train_epoch(self, epoch: int, recorder: Recorder | None) -> dict[str, float]:
        """One pass over the train interactions; `mib_sent` is what this worker sent to others."""
        decay, sent = self.train_config.lr_decay**epoch, self.traffic.sent
        self.decay_rates(decay)
        what = "a batch of neighbour blocks from the graph servers"
        batches = Prefetched(self.batches(epoch), self.sampling.prefetch, self.batch_seconds, what)
        totals, waited = Totals(self.worker), 0.0
        asked = started = time.monotonic()
        try:
            for batch in batches:
                waited += time.monotonic() - asked
                terms = self.train_step(batch, epoch, self.train_config.learning_rate * decay)
                totals.add(terms, batch.size / self.num_examples, f"{self.stage} epoch {epoch}, step {batch.step}")
                if recorder is not None:
                    recorder.say_within_epoch(epoch, batch.step + 1, self.num_steps, started)
                asked = time.monotonic()
        finally:
            batches.close()
        waiting = waited / max(time.monotonic() - started, 1e-9)
        return {**totals.row(epoch), "waiting": waiting, "mib_sent": (self.traffic.sent - sent) / 2**20}


class SampledTrainer:
    """`Trainer` of a sampled model: every worker keeps, saves and restores the rows that it owns.

    Args:
        model: The model.
        final: The tables that `infer` fills with final vectors, users' and items'.
        infer: Fills them from the weights as they are; collective.
        validation: None without the split.
    """

    def __init__(self, model: SampledModel, final: list[RowTable], infer: Any, validation: "ShardedValidation | None") -> None:
        self.model, self.worker, self.final, self.infer, self.validation = model, model.worker, final, infer, validation
        self.best: dict[str, Tensor] = {}

    def open(self, epochs: range) -> None:
        """Nothing to prepare: an epoch starts its own prefetching."""

    def close(self) -> None:
        """Nothing to end."""

    def train_epoch(self, epoch: int, recorder: Recorder | None) -> dict[str, float]:
        """One pass over the train interactions."""
        return self.model.train_epoch(epoch, recorder)

    def validate(self) -> dict[str, float] | None:
        """Infers all vectors exactly, and ranks the validation users."""
        if self.validation is None:
            return None
        self.infer()
        return self.validation(self.final)

    def keep(self) -> None:
        """Remembers the weights as the best so far."""
        for table in self.model.ids:
            table.copy("weight", "best")
        self.best = self.model.dense_weights()

    def restore_best(self) -> None:
        """Goes back to the best weights, and infers with them."""
        for table in self.model.ids:
            table.copy("best", "weight")
        self.model.load_dense_weights(self.best)
        self.worker.barrier()
        self.infer()

    def save(self, checkpoints: Checkpoints, epochs: int, facts: dict) -> None:
        """Every worker writes its own rows; rank 0 the replicated weights and their optimizer."""
        writer = checkpoints.shard_writer(epochs)
        for table in self.model.ids:
            for first, piece in self._pieces(table):
                for places in chunks(len(piece), CHECKPOINT_ROWS):
                    rows = {name: t.read(first + places) for name, t in table.tables.items()}
                    begin = piece.begin + int(places[0])
                    writer.add(f"{SIDE_NAMES[table.side]}-{piece.part}-{begin}-{begin + places.numel()}.safetensors", save(rows))
        state = self.model.dense_state()
        if self.worker.is_first:
            checkpoints.add_tensors(writer, "dense", state)
            checkpoints.add_tensors(writer, "best", self.best.items())
        else:
            for _ in state:  # the workers make each tensor together
                pass
        files = self.worker.gather(writer.files)
        if self.worker.is_first:
            checkpoints.publish(epochs, {**facts, "steps": self.model.num_steps_taken}, files)
        self.worker.barrier()

    def load(self, checkpoints: Checkpoints) -> dict | None:
        """Every worker reads what overlaps its own rows, whoever wrote it, from the newest checkpoint that all of them find complete."""
        found = checkpoints.complete(self._wants)
        of_ranks = self.worker.gather({self.worker.rank: set(found)})
        common = set.intersection(*of_ranks.values())
        if not common:
            self.keep()
            return None
        folder, facts = found[max(common)]
        for table in self.model.ids:
            for first, piece in self._pieces(table):
                for name in facts["files"]:
                    begin, end = _overlap(name, SIDE_NAMES[table.side], piece)
                    if begin < end:
                        rows, start = load_file(folder / name), int(name.split("-")[2])
                        places = torch.arange(first + begin - piece.begin, first + end - piece.begin)
                        for key, t in table.tables.items():
                            t.write(places, rows[key][begin - start : end - start])
        self.model.load_dense_state(checkpoints.read_tensors(folder, "dense"))
        self.best = {k: t.clone() for k, t in checkpoints.read_tensors(folder, "best").items()}
        self.model.num_steps_taken = facts["steps"]
        self.worker.barrier()
        return facts

    def _pieces(self, table: AdamTable) -> list[tuple[int, Piece]]:
        """This worker's pieces of a table, each with its first place."""
        pieces, first = [], 0
        for piece in self.model.client.owners.own(table.side, self.worker.rank):
            pieces.append((first, piece))
            first += len(piece)
        return pieces

    def _wants(self, name: str) -> bool:
        if name.startswith(("dense-", "best-")):
            return True
        mine = [(SIDE_NAMES[table.side], piece) for table in self.model.ids for _, piece in self._pieces(table)]
        return any(begin < end for begin, end in (_overlap(name, side, piece) for side, piece in mine))


def _overlap(name: str, side: str, piece: Piece) -> tuple[int, int]:
    """The run that a checkpoint's file and a piece share, [begin, end) in the part; empty where they share none."""
    words = name.removesuffix(".safetensors").split("-")
    if len(words) != 4 or words[0] != side or int(words[1]) != piece.part:
        return 0, 0
    return max(int(words[2]), piece.begin), min(int(words[3]), piece.end)


class ShardedValidation:
    """Exact full ranking of the validation users: each worker ranks its share against all items.

    The items' vectors are copied to a memory-mapped file that is deleted when the process ends: its pages count as cache.

    Args:
        worker: This worker.
        users: int64 [n], this worker's share of the users with a validation item; held_out: their items.
        train: Train items of all users.
        num_items, dim: Shape of the items' vectors.
        config: Metrics.
    """

    def __init__(self, worker: Worker, users: Tensor, held_out: Csr, train: Csr, dim: int, config: EvaluationConfig) -> None:
        self.worker, self.users, self.held_out, self.train, self.config = worker, users, held_out, train, config
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - as long as this object
        self._items = torch.from_numpy(np.memmap(self._file, np.float32, "w+", shape=(train.num_columns, dim)))

    @staticmethod
    def of(dataset: Dataset, worker: Worker, train: Csr, dim: int, config: EvaluationConfig) -> "ShardedValidation | None":
        """For this worker's share of the users; None without the split."""
        if not dataset.has_split("validation"):
            return None
        csr = dataset.csr("validation")
        mine = csr.degrees.nonzero().squeeze(1)[worker.rank :: worker.world_size]
        return ShardedValidation(worker, mine, csr.select(mine), train, dim, config)

    def __call__(self, final: list[RowTable]) -> dict[str, float]:
        """The metrics of the vectors in the tables; collective."""
        for places in chunks(len(self._items)):
            self._items[places] = final[ITEMS].pull(places)
        users = torch.cat([torch.zeros(0, final[USERS].dim), *(final[USERS].pull(ids) for ids in self.users.split(1 << 16))])
        exclude = self.train.select(self.users)
        metrics = rank_rows(users, self._items, self.held_out, exclude, self.config.cutoffs, self.config.memory_mib)
        self.worker.sum_(metrics.states())
        self.worker.barrier()  # the tables may change only when all have read them
        return metrics.compute()
