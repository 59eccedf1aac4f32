"""The sampled engine's teacher: neighbour blocks around the batch, and features reduced where they live.

Owners of items reduce the feature rows of their own shard under the current weights; d-sized z_m travel, with their gradients.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.blocks import Blocks, append_distinct
from ..core.config import SamplingConfig, TeacherConfig
from ..core.features import FeatureMoments, LazyRows, Standardisation, chunk_rows, principal_axes
from ..core.random import random_below
from ..core.sampling import STREAM_DECAY, share_of_part
from ..core.sides import ITEMS, USERS
from ..core.teacher import PromptConstants, build_reduction, final_dim, fuse, num_hops, rownorm, teacher_loss, teacher_vectors
from ..graph_store.backend import GraphConnection, RowTable
from ..graph_store.own_features import OwnFeatures
from .config import ClusterConfig
from .deepspeed_engine import ReductionEngine
from .exchange import RowExchange
from .layerwise import add_to, chunks, propagate
from .sampled import SampledModel, ServedRows
from .training import total_of
from .worker import Worker


@dataclass(frozen=True)
class Batch:
    """One worker's share of a micro-batch: structure only.

    Attributes:
        step: Within the epoch.
        is_last: Of the step's micro-batches.
        size: Of the global batch, all micro-batches together.
        blocks: Around the share's users and items.
        users, positives, negatives: int64, rows of the blocks' level 0.
        weights: float32, of the examples, or None.
        items: int64, dataset indices of all items whose rows are needed: the blocks', then further ones for the feature decay.
        decayed: int64, rows of `items` that the feature decay is taken over.
        num_decayed: Rows of the global batch that it is taken over.
        exchanges: For the rows of the blocks' users and of `items`.
    """

    step: int
    is_last: bool
    size: int
    blocks: Blocks
    users: Tensor
    positives: Tensor
    negatives: Tensor
    weights: Tensor | None
    items: Tensor
    decayed: Tensor
    num_decayed: int
    exchanges: list[RowExchange]


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
    tokens: list[RowTable]

    def rows(self, places: Tensor, device: torch.device) -> dict[str, Tensor | LazyRows]:
        """Rows of own items by modality [n, d_m], for the first reduction layer."""
        return {m: self.standardisation[m].lazily(own.read, places, device) for m, own in self.features.items()}

    def constants(self, users: Tensor, items: Tensor, device: torch.device) -> PromptConstants:
        """The prompt's constants with the tokens of own users and items, by place."""
        return PromptConstants(self.tokens[ITEMS].read(items), self.tokens[USERS].read(users), self.gram, self.column_sums).to(device)

    @staticmethod
    def of(client: GraphConnection, worker: Worker, own_ids: list[Tensor], dim: int, whiten: bool) -> "ShardedFeatures":
        """Streams the own rows three times: moments, row norms, tokens with h_I, G_m and s_m; sums over the shards in float64."""
        features = {m: client.own_features(m) for m in client.manifest["modalities"]}
        plain, standardisation, axes = {}, {}, {}
        for modality, own in features.items():
            moments, size = FeatureMoments.zeros(own.dim), chunk_rows(own.dim)
            for places in chunks(len(own), size):
                moments.add(*own.read(places))
            worker.sum_(moments.tensors())

            def with_unit_rows(standard: Standardisation) -> Standardisation:
                norms = torch.zeros(1, dtype=torch.float64)
                for places in chunks(len(own), size):  # noqa: B023
                    norms += standard.sum_of_row_norms(*own.read(places))  # noqa: B023
                worker.sum_([norms])
                return standard.with_mean_row_norm(norms[0] / moments.count.clamp(min=1))  # noqa: B023

            plain[modality] = standardisation[modality] = with_unit_rows(Standardisation.from_moments(moments))
            axes[modality] = principal_axes(moments, plain[modality], dim)
            if whiten:  # after the tokens' axes: those of whitened rows have no order
                standardisation[modality] = with_unit_rows(plain[modality].whitened(moments))
        tokens = [client.table(side, f"tokens_{side}", dim) for side in (USERS, ITEMS)]
        gram = {m: torch.zeros(dim, own.dim, dtype=torch.float64) for m, own in features.items()}
        sums = {m: torch.zeros(own.dim, dtype=torch.float64) for m, own in features.items()}
        for places in chunks(len(tokens[ITEMS]), chunk_rows(sum(own.dim for own in features.values()))):
            total, count, standard_rows = torch.zeros(places.numel(), dim, dtype=torch.float64), torch.zeros(places.numel(), 1), {}
            for modality, own in features.items():
                rows, present = own.read(places)
                tokens_rows = standard_rows[modality] = plain[modality].apply(rows, present).double()
                if whiten:
                    standard_rows[modality] = standardisation[modality].apply(rows, present).double()
                total += tokens_rows @ axes[modality]
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


class SampledTeacher(SampledModel):
    """The teacher's weights on one worker, and its training step.

    Args:
        client: Connection to the graph.
        worker: This worker.
        config: The teacher's settings; sampling: fan-outs and prefetching.
        cluster: Of the DeepSpeed engine, and micro-batches.
        seed: Seed of everything random.
    """

    stage = "teacher"

    def __init__(
        self, client: GraphConnection, worker: Worker, config: TeacherConfig, sampling: SamplingConfig, cluster: ClusterConfig, seed: int
    ) -> None:
        super().__init__(client, worker, sampling, config.train, config.dim, config.init_scale, config.user_balance, seed)
        self.config, self.num_parts = config, cluster.micro_batches
        self.sharded = ShardedFeatures.of(client, worker, self.own_ids, config.dim, config.whiten)
        dims = {m: own.dim for m, own in self.sharded.features.items()}
        self.final_dim = final_dim(config, len(dims))
        reduction = build_reduction(dims, config, seed, cluster.checkpoint_activations).to(worker.device)
        reduction.prompt.requires_grad_(config.prompt)
        nothing = torch.zeros(0, dtype=torch.int64)
        example = self.reduction_inputs(nothing, nothing, None)
        self.engine = ReductionEngine(reduction, config.reduction_learning_rate, config.tower_dtype, cluster, worker, example)
        self._served: list[list[ServedRows]] = []  # by the micro-batches of the step so far
        self.uses_prompt = config.prompt and bool(config.id_prompt_weight or config.prompt_loss_weight)

    def reduction_inputs(self, users: Tensor, items: Tensor, dropout_keys: tuple[int, ...] | None) -> tuple:
        """Arguments of `FeatureReduction.forward` for own users and items, by place."""
        device = self.worker.device
        rows = torch.arange(items.numel(), device=device)
        return (
            self.sharded.constants(users, items, device),
            rows,
            self.sharded.rows(items, device),
            dropout_keys,
            self.own_ids[ITEMS][items].to(device),
        )

    def batches(self, epoch: int) -> Iterator[Batch]:
        """This worker's share of every micro-batch of every step."""
        for step in range(self.num_steps):
            for part in range(self.num_parts):
                yield self.batch(epoch, step, part)

    def batch(self, epoch: int, step: int, part: int = 0) -> Batch:
        """This worker's share of one micro-batch; collective in the background's group.

        Neighbours, negatives and dropout are functions of the step and of the examples and nodes alone, so the micro-batches of a step
        draw what the whole batch would.
        """
        examples, users, positives = self.examples(epoch, step, self.share_of(step, part, self.num_parts))
        negatives = self.unseen(users, examples, 1, epoch)[:, 0]
        user_seeds, user_rows = torch.unique(users, return_inverse=True)
        item_seeds, item_rows = torch.unique(torch.cat([positives, negatives]), return_inverse=True)
        blocks = self.blocks(user_seeds, item_seeds, num_hops(self.config), epoch, step, epoch)
        decayed, num_decayed = self._decayed(epoch * self.num_steps + step, part)
        items, decayed_rows = append_distinct(blocks.items, decayed)
        count = examples.numel()
        exchanges = self.ask(blocks.users, items)
        rows = user_rows, item_rows[:count], item_rows[count:], self.weights_of(users)
        return Batch(
            step, part + 1 == self.num_parts, self.size_of(step), blocks, *rows, items, decayed_rows, num_decayed, exchanges
        )  # fmt: skip

    def _decayed(self, number: int, part: int) -> tuple[Tensor, int]:
        """This worker's share of the items that a micro-batch's feature decay is taken over, drawn uniformly, and how many a step has.

        As many as the batch has examples: an unbiased estimate of the mean over the catalog, exact where the catalog is smaller.
        """
        if not self.config.feature_decay:
            return torch.zeros(0, dtype=torch.int64), 0
        total = min(self.client.num_items, self.config.train.batch_size)
        mine = share_of_part(total, part, self.num_parts, self.worker.rank, self.worker.world_size)
        slots = torch.arange(mine.start, mine.stop)
        if total == self.client.num_items:
            return slots, total
        return random_below(self.client.num_items, STREAM_DECAY, self.seed, number, slots), total

    def loss_terms(self, batch: Batch, epoch: int) -> tuple[dict[str, Tensor], list[ServedRows]]:
        """The loss terms of this worker's share, and the ID rows that it serves; collective."""
        config, device = self.config, self.worker.device
        exchanges, served = batch.exchanges, self.serve(batch.exchanges)
        keys = (self.seed, epoch * self.num_steps + batch.step)
        out = self.engine(*self.reduction_inputs(exchanges[USERS].served, exchanges[ITEMS].served, keys))
        names = list(self.sharded.features)
        answers = [[served[USERS].rows], [served[ITEMS].rows, *(out[f"reduced.{m}"] for m in names)]]
        if self.uses_prompt:
            answers[USERS].append(out["user"])
            answers[ITEMS].append(out["item"])
        users, items = (x.gather(torch.cat(rows, 1)).split(config.dim, 1) for x, rows in zip(exchanges, answers))
        reduced = dict(zip(names, items[1 : 1 + len(names)]))
        blocks = batch.blocks.to(device)
        vectors = teacher_vectors(blocks, users[0], items[0], {"user": users[-1], "item": items[-1]}, reduced, config, final=False)
        decayed = batch.decayed.to(device)
        vectors = vectors.with_reduced({m: z[decayed] for m, z in reduced.items()})
        share, num_decayed = batch.size / self.worker.world_size, batch.num_decayed / self.worker.world_size
        weights = None if batch.weights is None else batch.weights.to(device)
        triples = batch.users.to(device), batch.positives.to(device), batch.negatives.to(device)
        entries = blocks.entries(triples[0], triples[1]) if config.leave_one_out else None
        terms = teacher_loss(vectors, users[0], items[0], *triples, share, config, num_decayed, weights, entries)
        return terms, served

    def train_step(self, batch: Batch, epoch: int, learning_rate: float) -> dict[str, Tensor]:
        """Forward and backward of a micro-batch, and both optimizers after a step's last one; collective."""
        terms, served = self.loss_terms(batch, epoch)
        self.engine.backward(total_of(terms), batch.is_last)
        self._served.append(served)
        if batch.is_last:
            self.engine.step()
            self.update(self._served, learning_rate)
            self._served = []
        return terms

    def decay_rates(self, factor: float) -> None:
        """Scales the engine's learning rate."""
        self.engine.learning_rate = self.config.reduction_learning_rate * factor

    def dense_weights(self) -> dict[str, Tensor]:
        """Reduction layers and prompt."""
        return self.engine.weights()

    def load_dense_weights(self, weights: dict[str, Tensor]) -> None:
        """Restores them; the optimizer's state stays."""
        self.engine.load_weights(weights)

    def dense_state(self) -> Iterator[tuple[str, Tensor]]:
        """The engine's state."""
        return self.engine.stream_state()

    def load_dense_state(self, state: dict[str, Tensor]) -> None:
        """Restores it, written at any world size and ZeRO stage."""
        self.engine.load(state)


class TeacherTables:
    """Exact inference into sharded tables, layer by layer: final, per-modality and prompt vectors of all users and items.

    Building it creates the tables, a collective call; so is `infer`.
    """

    def __init__(self, teacher: SampledTeacher) -> None:
        client, dim = teacher.client, teacher.config.dim

        def pair(name: str, width: int = dim) -> list[RowTable]:
            return [client.table(side, f"{name}_{side}", width) for side in (USERS, ITEMS)]

        self.teacher = teacher
        self.final, self.layers = pair("final", teacher.final_dim), (pair("layer_a"), pair("layer_b"))
        self.path = self.final if teacher.final_dim == dim else pair("path")  # the collaborative vectors, which fusion may replace
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
                add_to(self.path[side], then[side], scale=1 / (config.layers + 1) if last else 1.0)
            worker.barrier()
            now, then = then, now
        for of_users, of_items in self.modal.values():
            for _ in range(max(1, config.modality_layers)):
                propagate(client, own, of_items, of_users)
                worker.barrier()
                if config.modality_layers:
                    propagate(client, own, of_users, of_items)
                    worker.barrier()
        for side in (USERS, ITEMS):
            self._fuse(side)
        worker.barrier()

    def _fuse(self, side: int) -> None:
        """The final vectors of own users or items from the collaborative ones and those of every modality."""
        for places in chunks(len(self.final[side])):
            modal = [pair[side].read(places) for pair in self.modal.values()]
            self.final[side].write(places, fuse(self.path[side].read(places), modal, self.teacher.config, of_users=side == USERS))

    def _reduce(self) -> None:
        """Layer 0, the prompts, and z_m in the place of the items' modality vectors; the engine's calls are collective."""
        teacher, config = self.teacher, self.teacher.config
        counts = [len(table) for table in self.final]
        for users, items in zip(*teacher.worker.even_chunks(counts)):
            out = teacher.engine(*teacher.reduction_inputs(users, items, None))
            for side, (places, name) in enumerate(((users, "user"), (items, "item"))):
                rows = teacher.ids[side].read(places)
                if self.prompt is not None:
                    self.prompt[side].write(places, out[name].float().cpu())
                    rows = rows + config.id_prompt_weight * rownorm(out[name].float().cpu())
                self.layers[0][side].write(places, rows)
                self.path[side].write(places, rows)
            for modality, (_, of_items) in self.modal.items():
                of_items.write(items, out[f"reduced.{modality}"].float().cpu())
