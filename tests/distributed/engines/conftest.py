"""Trainers of both engines on one small catalog, in this process: DGL's standalone store runs the code of its servers for one part."""

import dataclasses
import itertools
import os

import pytest
import torch
from promptmm.core.config import EvaluationConfig, OptimizerConfig, SamplingConfig, TeacherConfig
from promptmm.core.sides import ITEMS, USERS
from promptmm.core.teacher import teacher_kind
from promptmm.core.vectors import TeacherVectors
from promptmm.graph_store.config import GraphConfig, SourceConfig
from promptmm.graph_store.dataset import open_dataset
from promptmm.graph_store.dataset_writer import write_dataset
from promptmm.graph_store.dgl.partition import partition
from promptmm.graph_store.feature_rows import map_features
from promptmm.graph_store.own_features import ItemShard
from promptmm.graph_store.sources.formats import load_catalog

SOURCE = SourceConfig(synthetic_num_users=120, synthetic_num_items=70, synthetic_interactions_per_user=10, synthetic_missing=0.2)
SEED = 3


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    """120 users, 70 items, two modalities with missing rows."""
    url = str(tmp_path_factory.mktemp("engines") / "dataset")
    write_dataset(url, load_catalog(SOURCE), {})
    return open_dataset(url)


def _partitioned(dataset, folder, **settings):
    partition(dataset, str(folder), GraphConfig(**settings))
    return str(folder)


@pytest.fixture(scope="session")
def graph_url(dataset, tmp_path_factory):
    """The catalog's graph in one part."""
    return _partitioned(dataset, tmp_path_factory.mktemp("graph") / "graph")


@pytest.fixture(scope="session")
def int8_graph_url(dataset, tmp_path_factory):
    """The same with int8 features."""
    return _partitioned(dataset, tmp_path_factory.mktemp("int8") / "graph", features="int8")


@pytest.fixture(scope="session")
def worker():
    from promptmm.distributed.worker import Worker

    return Worker(0, 1, torch.device("cpu"), ("here",))


@pytest.fixture(scope="session")
def process_group():
    """DeepSpeed wants a process group and its variables."""
    saved = dict(os.environ)
    os.environ.update(DS_ACCELERATOR="cpu", LOCAL_RANK="0", RANK="0", WORLD_SIZE="1")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()
    os.environ.clear()
    os.environ.update(saved)


@pytest.fixture(scope="session")
def teacher_config():
    """Makes a teacher's settings; a batch has more examples than there are items: the feature decay is then over all of them."""

    def make(**settings):
        train = OptimizerConfig(batch_size=80, learning_rate=0.01)
        return TeacherConfig(**{"dim": 6, "hidden": [10], "layers": 2, "dropout": 0.3, "train": train, **settings})

    return make


def _teacher_task(job, worker):
    from promptmm.distributed.tasks.teacher import PromptTeacherTask
    from promptmm.distributed.tasks.whole_teacher import WholeTeacherTask

    return PromptTeacherTask(job, worker) if teacher_kind(job.config).has_towers else WholeTeacherTask(job, worker)


@pytest.fixture
def teachers(dataset, graph_url, worker):
    """Makes (sampled, full) trainers of a teacher with the same settings and seed.

    Args: url: a graph, whose features are read instead of the dataset's; others are settings of the sampled engine.
    """
    from promptmm.distributed.config import ClusterConfig
    from promptmm.distributed.engines.full.catalog import build_catalog
    from promptmm.distributed.engines.full.trainer import FullTrainer
    from promptmm.distributed.engines.sampled.trainer import SampledTrainer
    from promptmm.distributed.execution.dataset_graph import train_graph
    from promptmm.distributed.messages import TeacherJob
    from promptmm.graph_store.dgl.standalone import connect_alone

    def make(config, fan_outs, url=graph_url, exclude_seed_edges=False, **cluster):
        sampling = SamplingConfig(fan_outs=fan_outs, exclude_seed_edges=exclude_seed_edges)
        cluster = {"executor": "ray" if "zero_stage" in cluster else "local", **cluster}
        of_sampled = ClusterConfig(engine="sampled", **cluster)
        of_full = ClusterConfig(engine="full", **{k: v for k, v in cluster.items() if k in ("executor", "zero_stage")})
        evaluation = EvaluationConfig(cutoffs=[5, 20])
        jobs = [TeacherJob("", evaluation, each, sampling, SEED, config=config) for each in (of_sampled, of_full)]
        client = connect_alone(url)
        sampled = SampledTrainer(_teacher_task(jobs[0], worker), jobs[0], client, worker, None)
        loaded = {m: map_features(client.folder, client.manifest, 0, m) for m in dataset.modalities}
        rows, present = {m: x.values() for m, x in loaded.items()}, {m: torch.from_numpy(x.present) for m, x in loaded.items()}
        shard = ItemShard(torch.arange(dataset.num_items), rows, present)
        catalog = build_catalog(worker, config, train_graph(dataset), lambda: shard)
        return sampled, FullTrainer(_teacher_task(jobs[1], worker), catalog, None)

    return make


@pytest.fixture(scope="session")
def taught(dataset, worker):
    """The dataset's folder with a teacher of random vectors beside it."""
    from promptmm.distributed.artifacts.teacher import output_of_vectors, write_revision

    folder = dataset.folder.parent
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(n, 6, generator=generator) for n in (120, 70) for _ in range(3)]
    vectors = TeacherVectors(rows[0], rows[3], {"a": rows[1], "b": rows[2]}, {"a": rows[4], "b": rows[5]}, None, None, {})
    write_revision(f"{folder}/teacher", 0, output_of_vectors(worker, vectors), {"none": torch.zeros(1)}, {})
    return folder


@pytest.fixture
def student_settings(taught):
    """Makes settings of a student in the sampled engine."""
    from promptmm.jobs.settings import load_settings

    def make(*overrides):
        words = [f"run.dir={taught}", "student.dim=6", "student.train.batch_size=100", "student.init_scale=0.5", "distill.num_uniform=4"]
        words += ["cluster.engine=sampled", "cluster.executor=local", "sampling.fan_outs=[-1]", "evaluation.cutoffs=[20]"]
        return load_settings(None, [*words, *overrides])

    return make


@pytest.fixture
def students(dataset, graph_url, worker, student_settings):
    """Makes (sampled, full) trainers of a student, with labels from a labeler in this process."""
    from promptmm.distributed.engines.full.catalog import build_catalog
    from promptmm.distributed.engines.full.trainer import FullTrainer
    from promptmm.distributed.engines.sampled.trainer import SampledTrainer
    from promptmm.distributed.execution.dataset_graph import DatasetGraph, train_graph
    from promptmm.distributed.labels.labeler import stream_here
    from promptmm.distributed.labels.rankings import has_rankings, rank_here
    from promptmm.distributed.run_job import student_task
    from promptmm.distributed.surroundings import Surroundings
    from promptmm.graph_store.dgl.standalone import connect_alone
    from promptmm.jobs.runs.worker_jobs import student_job

    def stream(job, epochs):
        if job.rankings is not None and not has_rankings(job.rankings, dataset):
            rank_here(job.rankings, dataset)
        return stream_here(job, dataset, epochs)

    def make(*overrides, engines=("sampled", "full")):
        settings = student_settings("labels.mode=streamed", *overrides)
        job = student_job(settings, dataset, 0)
        around = Surroundings(dataset, DatasetGraph(dataset), stream)
        sampled = None
        if "sampled" in engines:
            sampled = SampledTrainer(student_task(job, worker, around), job, connect_alone(graph_url), worker, None)
        of_full = dataclasses.replace(job, cluster=dataclasses.replace(job.cluster, engine="full"))
        catalog = build_catalog(worker, None, train_graph(dataset), lambda: None)
        return sampled, FullTrainer(student_task(of_full, worker, around), catalog, None)

    return make


class Parity:
    """Comparisons of a sampled trainer with a full one."""

    EVERYONE = (torch.arange(120), torch.arange(70))

    @staticmethod
    def total(terms):
        return torch.stack(list(terms.values())).sum()

    @staticmethod
    def batch(trainer, epoch, step, part=0):
        """A trainer's batch of a step, or a micro-batch of it."""
        batches = trainer.batches(epoch)
        try:
            return next(itertools.islice(batches, step * getattr(trainer, "num_parts", 1) + part, None))
        finally:
            batches.close()

    @staticmethod
    def named(trainer):
        """Trained parameters by the name that a checkpoint gives them, but for tables of ID vectors."""
        found = {}
        for learner in trainer.learners:
            module = learner.module if hasattr(learner, "module") else learner.engine.module
            found.update({learner.state_prefix + name: p for name, p in module.named_parameters() if p.requires_grad})
        return {name: p for name, p in found.items() if name.split(".")[-2] != "ids"}

    def clear(self, *trainers):
        for trainer in trainers:
            for parameter in (*self.named(trainer).values(), *getattr(trainer, "tables", torch.nn.Module()).parameters()):
                parameter.grad = None

    @staticmethod
    def close(actual, expected):
        scale = float(expected.abs().max())
        assert float((actual - expected).abs().max()) <= 1e-5 * scale

    def check_step(self, sampled, full, epoch, step):
        """Terms to 1e-5, gradients to 1e-5 of the largest; returns the names of weights beside ID rows that have a gradient."""
        self.clear(sampled, full)
        batch, whole = self.batch(sampled, epoch, step), self.batch(full, epoch, step)
        assert torch.equal(batch.blocks.users[batch.own.users], whole.users.long())
        assert torch.equal(batch.blocks.items[batch.own.items], whole.items.long())
        terms, served = sampled.loss_terms(batch, epoch)
        self.total(terms).backward()
        wanted = full.task.terms(full.view((full.task.seed, epoch * full.num_steps + step)), whole)
        self.total(wanted).backward()
        assert set(terms) == set(wanted)
        for name, value in wanted.items():
            torch.testing.assert_close(terms[name], value, rtol=1e-5, atol=1e-7)
        for side, table in ((USERS, full.tables.user), (ITEMS, full.tables.item)):
            ids = sampled.connection.own_ids(side)[served[side].places]
            self.close(served[side].rows.grad, table.grad[ids])
            others = torch.ones(table.shape[0], dtype=torch.bool)
            others[ids] = False
            assert not table.grad[others].any()
        expected, learnt = self.named(full), set()
        found = self.named(sampled)
        assert set(found) == set(expected)
        for name, parameter in found.items():
            if parameter.numel() and expected[name].grad is not None:
                self.close(parameter.grad, expected[name].grad)
                learnt |= {name} if parameter.grad.any() else set()
            else:
                assert parameter.grad is None or not parameter.grad.any()
        return learnt

    @torch.no_grad()
    def copy_weights(self, sampled, full):
        """Gives the full trainer the sampled one's weights and ID rows."""
        for side, table in ((USERS, full.tables.user), (ITEMS, full.tables.item)):
            table.copy_(sampled.ids[side].tables["weight"].pull(self.EVERYONE[side]))
        of_full = self.named(full)
        for name, parameter in self.named(sampled).items():
            of_full[name].copy_(parameter)

    @torch.no_grad()
    def check_vectors(self, sampled, full, rtol, atol):
        """All vectors of exact inference."""
        sampled.task.infer(sampled.inference)
        wanted = full.task.vectors(full.view())
        assert set(wanted) == set(sampled.task.vector_dims)
        for name, pair in wanted.items():
            for side, table in enumerate(sampled.inference.tables(name, sampled.task.vector_dims[name])):
                torch.testing.assert_close(table.pull(self.EVERYONE[side]), pair[side], rtol=rtol, atol=atol, msg=name)


@pytest.fixture(scope="session")
def parity():
    return Parity()
