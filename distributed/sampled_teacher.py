"""The sampled engine's teacher: neighbour blocks, sharded ID tables, and features reduced where they live.

A step on every worker: blocks around its share of the batch (made in the background); the ids of their input rows go to the rows' owners;
owners read ID rows from their shared memory and reduce feature rows of their own shard under the current weights; d-sized rows come
back, gradients return the same way, and owners update the ID rows that were touched.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.blocks import ITEMS, USERS, Blocks, append_distinct
from ..core.config import SamplingConfig, TeacherConfig
from ..core.features import FeatureMoments, Standardisation, principal_axes
from ..core.random import random_below
from ..core.sampling import STREAM_DECAY, UnseenItems, epoch_order, rank_slice
from ..core.teacher import PromptConstants, build_reduction, initial_rows, num_hops, rownorm, teacher_loss, teacher_vectors
from ..graph_store.client import GraphClient
from ..graph_store.embeddings import OwnFeatures, ShardedTable
from .deepspeed_engine import ReductionEngine
from .exchange import RowExchange, Traffic
from .layerwise import add_to, chunks, propagate
from .prefetch import Prefetched
from .progress import Recorder
from .sparse_adam import AdamTable
from .training import Totals, total_of
from .worker import Worker

BATCH_SECONDS = 300.0


@dataclass(frozen=True)
class Batch:
    """One worker's share of a step: structure only.

    Attributes:
        step: Within the epoch.
        size: Of the global batch.
        blocks: Around the share's users and items.
        users, positives, negatives: int64, rows of the blocks' level 0.
        items: int64, dataset indices of all items whose rows are needed: the blocks', then further ones for the feature decay.
        decayed: int64, rows of `items` that the feature decay is taken over.
        num_decayed: Of the global batch.
    """

    step: int
    size: int
    blocks: Blocks
    users: Tensor
    positives: Tensor
    negatives: Tensor
    items: Tensor
    decayed: Tensor
    num_decayed: int


@dataclass(frozen=True)
class ShardedFeatures:
    """The features of this worker's own items, standardised as they are read, and the prompt's constants.

    Attributes:
        features: Raw rows by modality, memory-mapped.
        standardisation: By modality, over all shards.
        gram, column_sums: G_m and s_m, float32.
        tokens: h_U and h_I, tables of users and items.
    """

    features: dict[str, OwnFeatures]
    standardisation: dict[str, Standardisation]
    gram: dict[str, Tensor]
    column_sums: dict[str, Tensor]
    tokens: list[ShardedTable]

    def rows(self, places: Tensor) -> dict[str, Tensor]:
        """Standardised rows of own items by modality, float32 [n, d_m]."""
        return {m: self.standardisation[m].apply(*own.read(places)) for m, own in self.features.items()}

    def constants(self, users: Tensor, items: Tensor, device: torch.device) -> PromptConstants:
        """The prompt's constants with the tokens of own users and items, by place."""
        return PromptConstants(self.tokens[ITEMS].read(items), self.tokens[USERS].read(users), self.gram, self.column_sums).to(device)

    @staticmethod
    def of(client: GraphClient, worker: Worker, own_ids: list[Tensor], dim: int) -> "ShardedFeatures":
        """Streams the own rows three times: moments, row norms, tokens with h_I, G_m and s_m; sums over the shards in float64."""
        pieces = client.owners.own(ITEMS, worker.rank)
        features = {m: OwnFeatures(pieces, client.folder, client.manifest, m) for m in client.manifest["modalities"]}
        standardisation, axes = {}, {}
        for modality, own in features.items():
            moments = FeatureMoments.of(torch.zeros(0, own.dim), torch.zeros(0, dtype=torch.bool))
            for places in chunks(len(own)):
                moments.add(FeatureMoments.of(*own.read(places)))
            worker.sum_(moments.tensors())
            standard = Standardisation.from_moments(moments)
            norms = torch.zeros((), dtype=torch.float64)
            for places in chunks(len(own)):
                norms += standard.sum_of_row_norms(*own.read(places))
            norms = norms[None]
            worker.sum_([norms])
            standardisation[modality] = standard.with_mean_row_norm(norms[0] / moments.count.clamp(min=1))
            axes[modality] = principal_axes(moments, standardisation[modality], dim)
        tokens = [ShardedTable(client, side, f"tokens_{side}", dim) for side in (USERS, ITEMS)]
        gram = {m: torch.zeros(dim, own.dim, dtype=torch.float64) for m, own in features.items()}
        sums = {m: torch.zeros(own.dim, dtype=torch.float64) for m, own in features.items()}
        for places in chunks(len(tokens[ITEMS])):
            total, count, standard_rows = torch.zeros(places.numel(), dim, dtype=torch.float64), torch.zeros(places.numel(), 1), {}
            for modality, own in features.items():
                rows, present = own.read(places)
                standard_rows[modality] = standardisation[modality].apply(rows, present).double()
                total += standard_rows[modality] @ axes[modality]
                count += present[:, None]
            hard = total / count.clamp(min=1)
            tokens[ITEMS].write(places, hard.float())
            for modality, x in standard_rows.items():
                gram[modality] += hard.T @ x
                sums[modality] += x.sum(0)
        worker.sum_([*gram.values(), *sums.values()])
        worker.barrier()
        propagate(client, own_ids, tokens[ITEMS], tokens[USERS])
        worker.barrier()
        return ShardedFeatures(
            features, standardisation, {m: g.float() for m, g in gram.items()}, {m: s.float() for m, s in sums.items()}, tokens
        )


class SampledTeacher:
    """The teacher's weights on one worker, and its training step.

    Args:
        client: Connection to the graph.
        worker: This worker.
        config: The teacher's settings; sampling: fan-outs and prefetching.
        zero_stage: Of the DeepSpeed engine.
        seed: Seed of everything random.
    """

    def __init__(
        self, client: GraphClient, worker: Worker, config: TeacherConfig, sampling: SamplingConfig, zero_stage: int, seed: int
    ) -> None:
        self.client, self.worker, self.config, self.sampling, self.seed = client, worker, config, sampling, seed
        self.train = client.train_rows()
        self.own_ids = [client.owners.own_ids(side, worker.rank, client.folder) for side in (USERS, ITEMS)]
        self.ids = [AdamTable(client, side, f"ids_{side}", config.dim) for side in (USERS, ITEMS)]
        for side, name in ((USERS, "user"), (ITEMS, "item")):
            for places in chunks(self.own_ids[side].numel()):
                rows = initial_rows(name, self.own_ids[side][places], config.dim, config.init_scale, seed)
                self.ids[side].tables["weight"].write(places, rows)
        self.sharded = ShardedFeatures.of(client, worker, self.own_ids, config.dim)
        reduction = build_reduction({m: own.dim for m, own in self.sharded.features.items()}, config, seed).to(worker.device)
        reduction.prompt.requires_grad_(config.prompt)
        nothing = torch.zeros(0, dtype=torch.int64)
        self.engine = ReductionEngine(
            reduction, config.reduction_learning_rate, zero_stage, worker, self._reduction_inputs(nothing, nothing, None)
        )
        self.traffic, self.num_steps_taken = Traffic(), 0
        self.uses_prompt = config.prompt and bool(config.id_prompt_weight or config.prompt_loss_weight)

    @property
    def num_examples(self) -> int:
        """Train interactions."""
        return self.train.columns.numel()

    @property
    def num_steps(self) -> int:
        """Steps of an epoch."""
        return -(-self.num_examples // self.config.train.batch_size)

    def _reduction_inputs(self, users: Tensor, items: Tensor, dropout_keys: tuple[int, ...] | None) -> tuple:
        """Arguments of `FeatureReduction.forward` for own users and items, by place."""
        device = self.worker.device
        rows = torch.arange(items.numel(), device=device)
        features = {m: x.to(device, non_blocking=True) for m, x in self.sharded.rows(items).items()}
        return self.sharded.constants(users, items, device), rows, features, dropout_keys, self.own_ids[ITEMS][items].to(device)

    def batches(self, epoch: int) -> Iterator[Batch]:
        """This worker's share of every step; reads the graph, not the weights, so it runs ahead in the background."""
        for step in range(self.num_steps):
            yield self.batch(epoch, step)

    def batch(self, epoch: int, step: int) -> Batch:
        """This worker's share of one step."""
        config, worker, size = self.config, self.worker, self.config.train.batch_size
        total = min(size, self.num_examples - step * size)
        mine = rank_slice(total, worker.rank, worker.world_size)
        examples = epoch_order(self.num_examples, self.seed, epoch, slice(step * size + mine.start, step * size + mine.stop))
        users = torch.searchsorted(self.train.pointers, examples, right=True) - 1
        positives = self.train.columns[examples].long()
        seeds, user_rows = torch.unique(users, return_inverse=True)
        negatives = UnseenItems(self.train.select(seeds), seeds).draw(user_rows, examples, 1, self.seed, epoch)[:, 0]
        item_seeds, item_rows = torch.unique(torch.cat([positives, negatives]), return_inverse=True)
        number = epoch * self.num_steps + step
        hops = num_hops(config)
        sampler = self.client.neighbours.sampler(self.sampling.fan_outs_of(hops), self.seed, number)
        blocks = Blocks.sample(sampler, seeds, item_seeds, hops)
        decayed, num_decayed = self._decayed(number)
        items, decayed_rows = append_distinct(blocks.items, decayed)
        count = examples.numel()
        return Batch(step, total, blocks, user_rows, item_rows[:count], item_rows[count:], items, decayed_rows, num_decayed)

    def _decayed(self, number: int) -> tuple[Tensor, int]:
        """This worker's share of the items that a step's feature decay is taken over, drawn uniformly, and how many there are in all.

        As many as the batch has examples: an unbiased estimate of the mean over the catalog, exact where the catalog is smaller.
        """
        if not self.config.feature_decay:
            return torch.zeros(0, dtype=torch.int64), 0
        total = min(self.client.num_items, self.config.train.batch_size)
        mine = rank_slice(total, self.worker.rank, self.worker.world_size)
        slots = torch.arange(mine.start, mine.stop)
        if total == self.client.num_items:
            return slots, total
        return random_below(self.client.num_items, STREAM_DECAY, self.seed, number, slots), total

    def loss_terms(self, batch: Batch, epoch: int) -> tuple[dict[str, Tensor], "list[ServedRows]"]:
        """The loss terms of this worker's share, and the ID rows that it serves, as leaves of the graph of gradients; collective."""
        config, device = self.config, self.worker.device
        exchanges = [
            RowExchange(self.worker, self.client.owners, side, ids, self.traffic)
            for side, ids in ((USERS, batch.blocks.users), (ITEMS, batch.items))
        ]
        served = [ServedRows(x.served, table.read(x.served).to(device).requires_grad_()) for x, table in zip(exchanges, self.ids)]
        keys = (self.seed, epoch * self.num_steps + batch.step)
        out = self.engine(*self._reduction_inputs(exchanges[USERS].served, exchanges[ITEMS].served, keys))
        names = list(self.sharded.features)
        answers = [[served[USERS].rows], [served[ITEMS].rows, *(out[f"reduced.{m}"] for m in names)]]
        if self.uses_prompt:
            answers[USERS].append(out["user"])
            answers[ITEMS].append(out["item"])
        users, items = (x.gather(torch.cat(rows, 1)).split(config.dim, 1) for x, rows in zip(exchanges, answers))
        reduced = dict(zip(names, items[1 : 1 + len(names)]))
        prompt = {"user": users[-1], "item": items[-1]}
        blocks = batch.blocks.to(device)
        vectors = teacher_vectors(blocks, users[0], items[0], prompt, reduced, config)
        decayed = batch.decayed.to(device)
        vectors = vectors.with_reduced({m: z[decayed] for m, z in reduced.items()})
        share = batch.size / self.worker.world_size
        triples = batch.users.to(device), batch.positives.to(device), batch.negatives.to(device)
        num_decayed = batch.num_decayed / self.worker.world_size
        terms = teacher_loss(vectors, users[0], items[0], triples[0], triples[1], triples[2], share, config, num_decayed)
        return terms, served

    def train_step(self, batch: Batch, epoch: int, learning_rate: float) -> dict[str, Tensor]:
        """Forward, backward and both optimizers; collective."""
        terms, served = self.loss_terms(batch, epoch)
        self.engine.backward(total_of(terms))
        self.engine.step()
        self.num_steps_taken += 1
        for table, rows in zip(self.ids, served):
            if rows.rows.grad is not None:
                grad = rows.rows.grad.cpu() / self.worker.world_size
                table.step(rows.places, grad, learning_rate, self.num_steps_taken)
        return terms

    def train_epoch(self, epoch: int, recorder: Recorder | None) -> dict[str, float]:
        """One pass over the train interactions."""
        config = self.config
        decay = config.train.lr_decay**epoch
        self.engine.learning_rate = config.reduction_learning_rate * decay
        what = "a batch of neighbour blocks from the graph servers"
        batches = Prefetched(self.batches(epoch), self.sampling.prefetch, BATCH_SECONDS, what)
        totals, waited = Totals(self.worker), 0.0
        asked = started = time.monotonic()
        try:
            for batch in batches:
                waited += time.monotonic() - asked
                terms = self.train_step(batch, epoch, config.train.learning_rate * decay)
                totals.add(terms, batch.size / self.num_examples, f"teacher epoch {epoch}, step {batch.step}")
                if recorder is not None:
                    recorder.say_within_epoch(epoch, batch.step + 1, self.num_steps, started)
                asked = time.monotonic()
        finally:
            batches.close()
        return {**totals.row(epoch), "waiting": waited / max(time.monotonic() - started, 1e-9)}


@dataclass(frozen=True)
class ServedRows:
    """ID rows that this worker serves in a step.

    Attributes:
        places: int64 [n], among its own rows.
        rows: float32 [n, d], a leaf whose gradient is the sum over all workers' losses.
    """

    places: Tensor
    rows: Tensor


class TeacherTables:
    """Exact inference into sharded tables, layer by layer: final, per-modality and prompt vectors of all users and items.

    Building it creates the tables, a collective call; so is `infer`.
    """

    def __init__(self, teacher: SampledTeacher) -> None:
        client, dim = teacher.client, teacher.config.dim

        def pair(name: str) -> list[ShardedTable]:
            return [ShardedTable(client, side, f"{name}_{side}", dim) for side in (USERS, ITEMS)]

        self.teacher = teacher
        self.final, self.layers = pair("final"), (pair("layer_a"), pair("layer_b"))
        self.modal = {m: pair(f"modal_{number}") for number, m in enumerate(teacher.sharded.features)}
        self.prompt = pair("prompt") if teacher.config.prompt else None

    @torch.no_grad()
    def infer(self) -> None:
        """Fills the tables from the weights as they are (method.md 1.2 to 1.5), without dropout."""
        teacher = self.teacher
        client, worker, config, own = teacher.client, teacher.worker, teacher.config, teacher.own_ids
        self._reduce()
        worker.barrier()
        now, then = self.layers
        for layer in range(config.layers):
            for side in (USERS, ITEMS):
                propagate(client, own, now[1 - side], then[side])
            for side in (USERS, ITEMS):
                last = layer + 1 == config.layers
                add_to(self.final[side], then[side], scale=1 / (config.layers + 1) if last else 1.0)
            worker.barrier()
            now, then = then, now
        for of_users, of_items in self.modal.values():
            for _ in range(config.modality_layers):
                propagate(client, own, of_items, of_users)
                worker.barrier()
                propagate(client, own, of_users, of_items)
                worker.barrier()
            for side, table in ((USERS, of_users), (ITEMS, of_items)):
                add_to(self.final[side], table, config.fusion_weight, normalise=True)
        worker.barrier()

    def _reduce(self) -> None:
        """Layer 0, the prompts, and z_m in the place of the items' modality vectors; the engine's calls are collective."""
        teacher, config = self.teacher, self.teacher.config
        counts = [len(table) for table in self.final]
        for users, items in zip(*teacher.worker.even_chunks(counts)):
            out = teacher.engine(*teacher._reduction_inputs(users, items, None))
            for side, (places, name) in enumerate(((users, "user"), (items, "item"))):
                rows = teacher.ids[side].read(places)
                if self.prompt is not None:
                    self.prompt[side].write(places, out[name].float().cpu())
                    rows = rows + config.id_prompt_weight * rownorm(out[name].float().cpu())
                self.layers[0][side].write(places, rows)
                self.final[side].write(places, rows)
            for modality, (_, of_items) in self.modal.items():
                of_items.write(items, out[f"reduced.{modality}"].float().cpu())
