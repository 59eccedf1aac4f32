"""Stage 1 in the sampled engine: training, and the teacher artifact written by all workers, shard by shard."""

import torch
from safetensors.torch import save

from ..core.config import as_dict
from ..core.sides import ITEMS, SIDE_NAMES, USERS
from ..core.storage import ShardWriter, join
from ..graph_store.backend import GraphConnection
from ..graph_store.dataset import Dataset, open_dataset
from ..graph_store.dgl.connection import connect
from .checkpoints import take_prefix, with_prefix
from .progress import Selection
from .resident import SERVICE_SECONDS
from .sampled import SampledTrainer, ShardedValidation
from .sampled_teacher import SampledTeacher, TeacherTables
from .teacher_artifact import ROWS_A_SHARD, publish_revision, publish_weights, revision_url
from .teacher_training import TeacherJob, teacher_stage
from .worker import Worker


def run_sampled_teacher(job: TeacherJob, worker: Worker) -> None:
    """Trains on every worker as a client of the graph servers, then infers exactly and writes the artifact."""
    import ray

    dataset = open_dataset(join(job.run_url, "dataset"), job.cluster.cache_dir)
    nodes = list(worker.nodes)
    session = None
    if worker.is_first:
        session = ray.get(job.service.restart.remote(nodes, worker.world_size), timeout=SERVICE_SECONDS)
    with connect(job.service, worker.share(session), worker.rank, nodes) as client:
        train_sampled_teacher(job, worker, client, dataset)


def train_sampled_teacher(job: TeacherJob, worker: Worker, client: GraphConnection, dataset: Dataset) -> None:
    """The same with a connection to the graph."""
    trainer = SampledTeacherTrainer(job, worker, client, dataset)
    stage = teacher_stage(job, dataset)
    stage.train(trainer, job.config.train.epochs)
    trainer.write(stage.selection)
    if worker.is_first:
        stage.recorder.say(f"best epoch {stage.selection.best_epoch}; vectors of {client.num_items:,} items written")
        stage.recorder.close()
    worker.barrier()


class SampledTeacherTrainer(SampledTrainer):
    """The teacher's trainer, and its artifact."""

    def __init__(self, job: TeacherJob, worker: Worker, client: GraphConnection, dataset: Dataset) -> None:
        assert job.sampling is not None
        self.job, self.client = job, client
        self.teacher = SampledTeacher(client, worker, job.config, job.sampling, job.cluster, job.seed)
        self.tables = TeacherTables(self.teacher)
        validation = ShardedValidation.of(dataset, worker, self.teacher.train, self.teacher.final_dim, job.evaluation)
        super().__init__(self.teacher, self.tables.final, self.tables.infer, validation)

    def write(self, selection: Selection) -> None:
        """Writes the best weights and the vectors of revision 0, each worker its share of the shards."""
        teacher, worker = self.teacher, self.worker
        self.restore_best()
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
                f"standardisation.{m}.{part}": tensor.contiguous()
                for m, s in teacher.sharded.standardisation.items()
                for part, tensor in s.tensors().items()
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
