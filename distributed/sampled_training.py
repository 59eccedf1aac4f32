"""Stage 1 in the sampled engine: checkpoints, validation and the teacher artifact, all written and read shard by shard."""

import tempfile

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from ..core.blocks import ITEMS, USERS
from ..core.config import as_dict
from ..core.graph import Csr
from ..core.ranking import rank_rows
from ..core.storage import ShardWriter, join
from ..graph_store.client import GraphClient, connect
from ..graph_store.dataset import Dataset, open_dataset
from ..graph_store.embeddings import Piece
from .checkpoints import Checkpoints, take_prefix, with_prefix
from .layerwise import chunks
from .progress import Recorder, Selection
from .resident import SERVICE_SECONDS
from .sampled_teacher import SampledTeacher, TeacherTables
from .sparse_adam import AdamTable
from .teacher_artifact import ROWS_A_SHARD, publish_revision, publish_weights, revision_url
from .teacher_training import TeacherJob, teacher_stage
from .worker import Worker

SIDE_NAMES = ("user", "item")
CHECKPOINT_ROWS = 1 << 16


def run_sampled_teacher(job: TeacherJob, worker: Worker) -> None:
    """Trains on every worker as a client of the graph servers, then infers exactly and writes the artifact."""
    import ray

    dataset = open_dataset(join(job.run_url, "dataset"), job.cluster.cache_dir)
    nodes = list(worker.nodes)
    session = None
    if worker.is_first:
        session = ray.get(job.service.restart.remote(nodes, worker.world_size), timeout=SERVICE_SECONDS)
    with connect(job.service, worker.share(session), worker.rank, nodes) as client:
        trainer = SampledTeacherTrainer(job, worker, client, dataset)
        stage = teacher_stage(job, dataset)
        stage.train(trainer, job.config.train.epochs)
        trainer.write(stage.selection)
        if worker.is_first:
            stage.recorder.say(f"best epoch {stage.selection.best_epoch}; vectors of {client.num_items:,} items written")
            stage.recorder.close()
        worker.barrier()


class SampledTeacherTrainer:
    """`Trainer` of the sampled teacher: every worker keeps, saves and restores the rows that it owns."""

    def __init__(self, job: TeacherJob, worker: Worker, client: GraphClient, dataset: Dataset) -> None:
        self.job, self.worker, self.client = job, worker, client
        assert job.sampling is not None
        self.teacher = SampledTeacher(client, worker, job.config, job.sampling, job.cluster.zero_stage, job.seed)
        self.tables = TeacherTables(self.teacher)
        self.validation = ShardedValidation.of(dataset, self) if dataset.has_split("validation") else None
        self.best: dict[str, Tensor] = {}

    def open(self, epochs: range) -> None:
        """Nothing to prepare: an epoch starts its own prefetching."""

    def close(self) -> None:
        """Nothing to end."""

    def train_epoch(self, epoch: int, recorder: Recorder | None) -> dict[str, float]:
        """One pass over the train interactions; `mib_sent` is what this worker sent to others."""
        before = self.teacher.traffic.sent
        row = self.teacher.train_epoch(epoch, recorder)
        return {**row, "mib_sent": (self.teacher.traffic.sent - before) / 2**20}

    def validate(self) -> dict[str, float] | None:
        """Infers all vectors exactly, and ranks the validation users."""
        if self.validation is None:
            return None
        self.tables.infer()
        return self.validation()

    def keep(self) -> None:
        """Remembers the weights as the best so far."""
        for table in self.teacher.ids:
            table.copy("weight", "best")
        self.best = self.teacher.engine.weights()

    def save(self, checkpoints: Checkpoints, epochs: int, facts: dict) -> None:
        """Every worker writes its own rows; rank 0 the engine's state."""
        writer = checkpoints.shard_writer(epochs)
        for table in self.teacher.ids:
            for first, piece in self._pieces(table):
                for places in chunks(len(piece), CHECKPOINT_ROWS):
                    rows = {name: t.read(first + places) for name, t in table.tables.items()}
                    begin = piece.begin + int(places[0])
                    writer.add(f"{SIDE_NAMES[table.side]}-{piece.part}-{begin}-{begin + places.numel()}.safetensors", save(rows))
        state = self.teacher.engine.state()  # a collective call
        if self.worker.is_first:
            tensors = {**with_prefix("state.", state), **with_prefix("best.", self.best)}
            writer.add("engine.safetensors", save({k: t.contiguous() for k, t in tensors.items()}))
        files = self.worker.gather(writer.files)
        if self.worker.is_first:
            checkpoints.publish(epochs, {**facts, "steps": self.teacher.num_steps_taken}, files)
        self.worker.barrier()

    def load(self, checkpoints: Checkpoints) -> dict | None:
        """Every worker reads what overlaps its own rows, whoever wrote it."""
        found = checkpoints.latest_shards(self._wants)
        if found is None:
            self.keep()
            return None
        folder, facts = found
        for table in self.teacher.ids:
            for first, piece in self._pieces(table):
                for name in facts["files"]:
                    begin, end = _overlap(name, SIDE_NAMES[table.side], piece)
                    if begin < end:
                        rows, start = load_file(folder / name), int(name.split("-")[2])
                        places = torch.arange(first + begin - piece.begin, first + end - piece.begin)
                        for key, t in table.tables.items():
                            t.write(places, rows[key][begin - start : end - start])
        engine = load_file(folder / "engine.safetensors")
        self.teacher.engine.load(take_prefix("state.", engine))
        self.best = take_prefix("best.", engine)
        self.teacher.num_steps_taken = facts["steps"]
        self.worker.barrier()
        return facts

    def _pieces(self, table: AdamTable) -> list[tuple[int, Piece]]:
        """This worker's pieces of a table, each with its first place."""
        pieces, first = [], 0
        for piece in self.client.owners.own(table.side, self.worker.rank):
            pieces.append((first, piece))
            first += len(piece)
        return pieces

    def _wants(self, name: str) -> bool:
        if name == "engine.safetensors":
            return True
        mine = [(SIDE_NAMES[table.side], piece) for table in self.teacher.ids for _, piece in self._pieces(table)]
        return any(begin < end for begin, end in (_overlap(name, side, piece) for side, piece in mine))

    def write(self, selection: Selection) -> None:
        """Writes the best weights and the vectors of revision 0, each worker its share of the shards."""
        teacher, worker = self.teacher, self.worker
        for table in teacher.ids:
            table.copy("best", "weight")
        state = teacher.engine.state()
        state.update(with_prefix("weight.", self.best))
        teacher.engine.load(state)
        worker.barrier()
        self.tables.infer()
        url, config = join(self.job.run_url, "teacher"), self.job.config
        weights, vectors = ShardWriter(url), ShardWriter(revision_url(url, 0))
        if worker.is_first:
            weights.clear()
        worker.barrier()
        counts = (self.client.num_users, self.client.num_items)
        shards = [(side, first) for side in (USERS, ITEMS) for first in range(0, counts[side], ROWS_A_SHARD)]
        for side, first in shards[worker.rank :: worker.world_size]:
            name, ids = SIDE_NAMES[side], torch.arange(first, min(first + ROWS_A_SHARD, counts[side]))
            rows = {"final": self.tables.final[side], **{f"modal.{m}": pair[side] for m, pair in self.tables.modal.items()}}
            if self.tables.prompt is not None:
                rows["prompt"] = self.tables.prompt[side]
            shard = f"{name}-{first // ROWS_A_SHARD:05d}.safetensors"
            vectors.add(shard, save({key: table.pull(ids) for key, table in rows.items()}))
            weights.add(f"ids-{shard}", save({f"ids.{name}": teacher.ids[side].tables["weight"].pull(ids)}))
        prompt = take_prefix("prompt.", self.best)
        if worker.is_first:
            standard = {
                f"standardisation.{m}.{part}": getattr(s, part).contiguous()
                for m, s in teacher.sharded.standardisation.items()
                for part in ("mean", "scale")
            }
            weights.add("weights.safetensors", save({**with_prefix("reduction.", self.best), **standard}))
            vectors.add("prompt.safetensors", save(prompt))
        files = [worker.gather(writer.files) for writer in (weights, vectors)]
        if worker.is_first:
            dims = {m: own.dim for m, own in teacher.sharded.features.items()}
            trained = sum(t.numel() for name, t in self.best.items() if config.prompt or not name.startswith("prompt."))
            facts = {
                "best_epoch": selection.best_epoch,
                "selected_by": selection.metric,
                "num_parameters": trained + sum(counts) * config.dim,
                "lineage": self.job.lineage,
                "seed": self.job.seed,
            }
            publish_weights(url, dims, config, facts, files[0])
            publish_revision(url, 0, list(dims), {"lineage": self.job.lineage, "config": as_dict(config)}, files[1])
        worker.barrier()


def _overlap(name: str, side: str, piece: Piece) -> tuple[int, int]:
    """The run that a checkpoint's file and a piece share, [begin, end) in the part; empty where they share none."""
    words = name.removesuffix(".safetensors").split("-")
    if len(words) != 4 or words[0] != side or int(words[1]) != piece.part:
        return 0, 0
    return max(int(words[2]), piece.begin), min(int(words[3]), piece.end)


class ShardedValidation:
    """Exact full ranking of the validation users: each worker ranks its share against all items.

    The items' vectors are copied to a memory-mapped file that is deleted when the process ends: pages of it count as cache.
    """

    def __init__(self, trainer: SampledTeacherTrainer, users: Tensor, held_out: Csr) -> None:
        self.trainer, self.users, self.held_out = trainer, users, held_out
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - as long as this object
        shape = (trainer.client.num_items, trainer.job.config.dim)
        self._items = torch.from_numpy(np.memmap(self._file, np.float32, "w+", shape=shape))

    @staticmethod
    def of(dataset: Dataset, trainer: SampledTeacherTrainer) -> "ShardedValidation":
        """This worker's share of the users with a validation item."""
        csr, worker = dataset.csr("validation"), trainer.worker
        mine = csr.degrees.nonzero().squeeze(1)[worker.rank :: worker.world_size]
        return ShardedValidation(trainer, mine, csr.select(mine))

    def __call__(self) -> dict[str, float]:
        """The metrics of the vectors in the tables; collective."""
        final, config = self.trainer.tables.final, self.trainer.job.evaluation
        for places in chunks(len(self._items)):
            self._items[places] = final[ITEMS].pull(places)
        users = torch.cat([torch.zeros(0, final[USERS].dim), *(final[USERS].pull(ids) for ids in self.users.split(1 << 16))])
        exclude = self.trainer.teacher.train.select(self.users)
        metrics = rank_rows(users, self._items, self.held_out, exclude, config.cutoffs, config.memory_mib)
        self.trainer.worker.sum_(metrics.states())
        self.trainer.worker.barrier()  # the tables may change only when all have read them
        return metrics.compute()
