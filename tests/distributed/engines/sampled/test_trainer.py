"""The sampled engine against the full one, in this process: DGL's standalone store runs the same code as its servers, for one part."""

import contextlib
import copy
import dataclasses
import io
import itertools
import json
import os
import shutil

import pytest
import torch
from promptmm.core.config import OptimizerConfig, SamplingConfig, TeacherConfig
from promptmm.core.sides import ITEMS, USERS
from promptmm.core.storage import read_json
from promptmm.core.teacher import teacher_loss
from promptmm.graph_store.config import GraphConfig, SourceConfig
from promptmm.graph_store.dataset import open_dataset
from promptmm.graph_store.dataset_writer import write_dataset
from promptmm.graph_store.dgl.partition import partition
from promptmm.graph_store.feature_rows import map_features
from promptmm.graph_store.sources.formats import load_catalog

SOURCE = SourceConfig(synthetic_num_users=120, synthetic_num_items=70, synthetic_interactions_per_user=10, synthetic_missing=0.2)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    url = str(tmp_path_factory.mktemp("sampled") / "dataset")
    write_dataset(url, load_catalog(SOURCE), {})
    return open_dataset(url)


@pytest.fixture(scope="module")
def process_group():
    """DeepSpeed wants a process group and its variables."""
    saved = dict(os.environ)
    os.environ.update(DS_ACCELERATOR="cpu", LOCAL_RANK="0", RANK="0", WORLD_SIZE="1")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()
    os.environ.clear()
    os.environ.update(saved)


@pytest.fixture(scope="module")
def client(dataset, process_group, tmp_path_factory):
    """A client of the one-part graph."""
    folder = tmp_path_factory.mktemp("graph") / "graph"
    partition(dataset, str(folder), GraphConfig())
    os.environ.update(DGLBACKEND="pytorch", DGL_DIST_MODE="standalone")
    import dgl.distributed
    from promptmm.graph_store.backend import PartLocation, Session
    from promptmm.graph_store.dgl.client import GraphClient

    dgl.distributed.initialize(None)
    graph = dgl.distributed.DistGraph("promptmm", part_config=str(folder / "promptmm.json"))
    session = Session("alone", str(folder), (PartLocation("here", str(folder)),))
    return GraphClient(graph, session, folder, 0, ["here"])


@pytest.fixture(scope="module")
def worker():
    from promptmm.distributed.worker import Worker

    return Worker(0, 1, torch.device("cpu"), ("here",))


def teacher_config(**settings):
    train = OptimizerConfig(batch_size=80, learning_rate=0.01)  # more than the items: the feature decay is then over all of them
    return TeacherConfig(**{"dim": 6, "hidden": [10], "layers": 2, "dropout": 0.3, "train": train, **settings})


NAMES = itertools.count()


def renamed(client):
    """The client with other names for its tables: standalone tensors live as long as the process."""
    other = copy.copy(client)
    other.space = dataclasses.replace(client.space, suffix=f"_{next(NAMES)}")
    return other


@pytest.fixture(scope="module")
def int8_client(client, dataset, tmp_path_factory):
    """The client of a graph with the same structure, whose features are int8."""
    folder = tmp_path_factory.mktemp("int8") / "graph"
    partition(dataset, str(folder), GraphConfig(features="int8"))
    other = copy.copy(client)
    other.folder, other.manifest = folder, read_json(str(folder / "manifest.json"))
    return other


@pytest.fixture
def both(client, dataset, worker):
    """(sampled, full) with the same settings and seed; features: a graph's, instead of the dataset's."""
    from promptmm.distributed.config import ClusterConfig
    from promptmm.distributed.resident import build_resident
    from promptmm.distributed.sampled_teacher import SampledTeacher
    from promptmm.distributed.student_training import train_graph
    from promptmm.distributed.teacher_training import TeacherJob, TeacherTrainer
    from promptmm.graph_store.own_features import ItemShard

    def make(config, fan_outs, client=client, exclude_seed_edges=False, **cluster):
        sampling = SamplingConfig(fan_outs=fan_outs, exclude_seed_edges=exclude_seed_edges)
        sampled = SampledTeacher(renamed(client), worker, config, sampling, ClusterConfig(engine="sampled", **cluster), 3)
        loaded = {m: map_features(client.folder, client.manifest, 0, m) for m in dataset.modalities}
        rows, present = {m: x.values() for m, x in loaded.items()}, {m: torch.from_numpy(x.present) for m, x in loaded.items()}
        resident = build_resident(worker, config, train_graph(dataset), ItemShard(torch.arange(dataset.num_items), rows, present))
        full = ClusterConfig(zero_stage=1 if config.reduction_dtype == "bfloat16" else 0)
        return sampled, TeacherTrainer(TeacherJob("", config, None, full, 3, None, None), worker, resident)

    return make


CONCAT = {"fusion": "concat", "modality_layers": 0, "whiten": True, "leave_one_out": True, "feature_temperature": 0.2}


def whole_gradients(full, batch, config, epoch):
    """Terms and gradients of the full engine on the sampled engine's batch."""
    blocks, resident = batch.blocks, full.resident
    vectors = resident.vectors(full.engine, full.ids.user, full.ids.item, (3, epoch * full.num_steps + batch.step))
    triples = blocks.users[batch.users], blocks.items[batch.positives], blocks.items[batch.negatives]
    weights = resident.user_weights and resident.user_weights(triples[0])
    entries = resident.graph.entries(triples[0], triples[1])
    terms = teacher_loss(vectors, full.ids.user, full.ids.item, *triples, batch.size, config, weights=weights, entries=entries)
    full.engine.backward(torch.stack(list(terms.values())).sum())
    return terms


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"id_prompt_weight": 0.0, "layers": 3},
        {"modality_layers": 2, "layers": 1, "hidden": []},
        {"prompt": False},
        {"feature_decay": 0.0, "prompt_loss_weight": 0.0, "id_prompt_weight": 0.0},
        {"user_balance": 0.5},
        CONCAT,
    ],
    ids=["default", "no prompt in the vectors", "two rounds", "no prompt", "few terms", "users balanced", "set beside each other"],
)
def test_all_neighbours_give_the_full_engines_step(both, settings):
    """Terms to 1e-5, gradients of ID rows, reduction layers and prompt to 1e-5 of the largest; dropout included: its mask is the items'."""
    config = teacher_config(**settings)
    check_steps(config, *both(config, [-1]))


def test_the_engines_agree_on_int8_features(both, int8_client, dataset):
    """As on float32, on rows that are not the dataset's."""
    config = teacher_config()
    sampled, full = both(config, [-1], int8_client)
    exact, _ = both(config, [-1])
    for modality, features in full.resident.features.items():
        stored = exact.sharded.standardisation[modality].apply(*exact.sharded.features[modality].read(torch.arange(70)))
        difference = (features - stored).abs()
        assert 0 < float(difference.max()) < 0.05 * float(features.abs().max())
    check_steps(config, sampled, full)
    losses = [sampled.train_epoch(epoch, None)["loss"] for epoch in range(8)]
    assert losses[-1] < 0.9 * losses[0]


def check_steps(config, sampled, full):
    learnt = 0
    for epoch, step in ((0, 0), (2, 3)):
        for trainer in (sampled, full):
            trainer.engine.engine.module.zero_grad()
        full.ids.zero_grad()
        batch = sampled.batch(epoch, step)
        terms, served = sampled.loss_terms(batch, epoch)
        sampled.engine.backward(torch.stack(list(terms.values())).sum())
        wanted = whole_gradients(full, batch, config, epoch)
        assert set(terms) == set(wanted)
        for name, value in wanted.items():
            torch.testing.assert_close(terms[name], value, rtol=1e-5, atol=1e-7)
        for side, table in ((USERS, full.ids.user), (ITEMS, full.ids.item)):
            ids = sampled.own_ids[side][served[side].places]
            close(served[side].rows.grad, table.grad[ids])
            others = torch.ones(table.shape[0], dtype=torch.bool)
            others[ids] = False
            assert not table.grad[others].any()
        gradients = dict(full.engine.engine.module.named_parameters())
        for name, parameter in sampled.engine.engine.module.named_parameters():
            if parameter.requires_grad:
                close(parameter.grad, gradients[name].grad)
                learnt += bool(parameter.grad.any())
    assert learnt >= 2 * 2 * len(full.resident.features)


def close(actual, expected):
    scale = float(expected.abs().max())
    assert float((actual - expected).abs().max()) <= 1e-5 * scale


def test_the_batches_are_those_of_the_full_engine(both):
    """Same examples, same negatives; none of them a train item."""
    sampled, full = both(teacher_config(), [2])
    seen = {(u, i) for u, i in zip(full.train_users.tolist(), full.train_items.tolist())}
    visited = []
    for batch in sampled.batches(1):
        users, positives = batch.blocks.users[batch.users], batch.blocks.items[batch.positives]
        negatives = batch.blocks.items[batch.negatives]
        visited += list(zip(users.tolist(), positives.tolist()))
        assert not seen & set(zip(users.tolist(), negatives.tolist()))
    assert sorted(visited) == sorted(seen)


def test_a_step_is_a_function_of_its_place(both):
    sampled, _ = both(teacher_config(), [2, 3])
    first, again, other = sampled.batch(1, 2), sampled.batch(1, 2), sampled.batch(2, 2)
    assert torch.equal(first.blocks.items, again.blocks.items)
    assert torch.equal(first.blocks.users_of[0].weights, again.blocks.users_of[0].weights)
    assert not torch.equal(first.blocks.users, other.blocks.users)
    assert int(first.blocks.users_of[0].rows.degrees.max()) == 2
    assert int(first.blocks.users_of[1].rows.degrees.max()) == 3


def seed_edges(blocks, users, positives) -> int:
    """Edges of the blocks, in both directions and all hops, that are pairs of the batch."""
    pairs, found = set(zip(users.tolist(), positives.tolist())), 0
    for hops, order in ((blocks.users_of, 1), (blocks.items_of, -1)):
        for hop in hops:
            ends = [(blocks.users, blocks.items)[::order][place][ids] for place, ids in enumerate((hop.rows.rows, hop.rows.columns))]
            found += sum(pair in pairs for pair in zip(*(x.tolist() for x in ends[::order])))
    return found


@pytest.mark.parametrize("excluded", [True, False])
def test_seed_edges_stay_or_are_left_out(both, client, dataset, taught, worker, excluded):
    """Teacher's blocks and student's, whose later epochs take earlier epochs' labels."""
    from promptmm.distributed.labels import Labeler, labels_url, publish_labels, write_block
    from promptmm.distributed.sampled_student import SampledStudent
    from promptmm.jobs.runs.worker_jobs import student_job
    from promptmm.jobs.settings import load_settings

    sampled, _ = both(teacher_config(), [8], exclude_seed_edges=excluded)
    for batch in sampled.batches(1):
        found = seed_edges(batch.blocks, batch.blocks.users[batch.users], batch.blocks.items[batch.positives])
        assert (found == 0) == excluded
    words = [f"run.dir={taught}", "student.train.batch_size=100", "distill.num_uniform=4", "evaluation.cutoffs=[20]"]
    words += ["cluster.engine=sampled", "sampling.fan_outs=[8]", f"sampling.exclude_seed_edges={excluded}"]
    job, threads = student_job(load_settings(None, words), dataset, 0), torch.get_num_threads()
    labeler, url = Labeler(job.label_job()), labels_url(job.run_url, 0)
    torch.set_num_threads(threads)
    publish_labels(job.label_job(), url, 2, [write_block(labeler, url, e, b) for e in (0, 1) for b in range(labeler.job.num_blocks)], {})
    student = SampledStudent(job, worker, renamed(client))
    student.open(range(3, 4))
    for batch in student.batches(3):
        labels, blocks = batch.labels, batch.blocks
        found = seed_edges(blocks, blocks.users[labels.users], blocks.items[labels.candidates[:, 0]])
        assert (found == 0) == excluded


@pytest.mark.parametrize("settings", [{}, {"modality_layers": 2, "layers": 0}, {"prompt": False, "layers": 3}, CONCAT])
def test_exact_inference_is_the_full_engines(both, settings):
    from promptmm.distributed.sampled_teacher import TeacherTables

    sampled, full = both(teacher_config(**settings), [2])
    for batch in sampled.batches(0):  # some training, so that no weight is at its start
        sampled.train_step(batch, 0, 0.01)
    tables, everyone = TeacherTables(sampled), [torch.arange(120), torch.arange(70)]
    tables.infer()
    with torch.no_grad():
        for side, table in ((USERS, full.ids.user), (ITEMS, full.ids.item)):
            table.copy_(sampled.ids[side].tables["weight"].pull(everyone[side]))
        state = full.engine.state()
        state.update({f"weight.{name}": w for name, w in sampled.engine.weights().items()})
        full.engine.load(state)
    vectors = full.vectors()
    for side, wanted in ((USERS, vectors.user), (ITEMS, vectors.item)):
        torch.testing.assert_close(tables.final[side].pull(everyone[side]), wanted, rtol=1e-4, atol=1e-5)
    for modality in vectors.modal_item:
        of_users, of_items = tables.modal[modality]
        torch.testing.assert_close(of_users.pull(everyone[USERS]), vectors.modal_user[modality], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(of_items.pull(everyone[ITEMS]), vectors.modal_item[modality], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("num_rows", "num_edges"), [(16_384, 40), (7, 40), (16_384, 1)])
def test_chunks_of_few_edges_give_the_same_sums(both, client, monkeypatch, num_rows, num_edges):
    """Also where a row has more edges than a chunk."""
    from promptmm.distributed import layerwise

    sampled, full = both(teacher_config(), [2])
    monkeypatch.setattr(layerwise, "CHUNK_ROWS", num_rows)
    monkeypatch.setattr(layerwise, "CHUNK_EDGES", num_edges)
    graph = full.resident.graph
    for side, rows, spread in ((USERS, graph.users, graph.to_users), (ITEMS, graph.items, graph.to_items)):
        sizes = [rows.degrees[places].sum().item() for places in layerwise.edge_chunks(client, side)]
        longest = max(len(places) for places in layerwise.edge_chunks(client, side))
        assert torch.equal(torch.cat(list(layerwise.edge_chunks(client, side))), torch.arange(rows.num_rows))
        assert int(rows.degrees.max()) > num_edges or num_edges == 40
        assert max(sizes) <= max(num_edges, int(rows.degrees.max()))
        assert longest <= num_rows
        source, target = (renamed(client).table(s, f"chunks_{s}", 5) for s in (1 - side, side))
        values = torch.randn(len(source), 5, generator=torch.Generator().manual_seed(0))
        source.write(torch.arange(len(source)), values)
        layerwise.propagate(client, sampled.own_ids, source, target)
        torch.testing.assert_close(target.read(torch.arange(len(target))), spread(values), rtol=1e-5, atol=1e-6)


def test_small_fan_outs_learn(both):
    sampled, _ = both(teacher_config(), [3])
    losses = [sampled.train_epoch(epoch, None)["loss"] for epoch in range(12)]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_micro_batches_take_the_whole_batchs_steps(both, zero_stage):
    """An epoch of steps, with one sparse Adam step on a row's summed gradients each: losses to 1e-5, ID rows and weights to 1e-5."""
    config = teacher_config()
    whole, cut = both(config, [2])[0], both(config, [2], micro_batches=3, zero_stage=zero_stage)[0]
    parts = [cut.batch(1, 2, part) for part in range(3)]
    batch = whole.batch(1, 2)
    examples = [sorted(zip(*(ids[rows].tolist() for ids, rows in triples(b)))) for b in (batch, *parts)]
    assert examples[0] == sorted(examples[1] + examples[2] + examples[3])
    assert sorted(batch.items[batch.decayed].tolist()) == sorted(i for part in parts for i in part.items[part.decayed].tolist())
    rows = [model.train_epoch(0, None) for model in (whole, cut)]
    assert rows[1]["loss"] == pytest.approx(rows[0]["loss"], rel=1e-5)
    assert whole.num_steps_taken == cut.num_steps_taken == whole.num_steps
    for side, count in ((USERS, 120), (ITEMS, 70)):
        found = [model.ids[side].tables["weight"].pull(torch.arange(count)) for model in (whole, cut)]
        torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-5)
    weights = [model.dense_weights() for model in (whole, cut)]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=0, atol=1e-5)


def triples(batch):
    return (batch.blocks.users, batch.users), (batch.blocks.items, batch.positives), (batch.blocks.items, batch.negatives)


def test_all_of_deepspeed_at_once_learns_and_rounds_little(both):
    """bfloat16, ZeRO 3, everything offloaded, micro-batches and recomputed activations beside plain float32: epoch losses to 1 %."""
    plain = both(teacher_config(), [3])[0]
    modes = {"zero_stage": 3, "offload_optimizer": True, "offload_parameters": True, "micro_batches": 2, "checkpoint_activations": True}
    towers = both(teacher_config(reduction_dtype="bfloat16"), [3], **modes)[0]
    losses = [[model.train_epoch(epoch, None)["loss"] for epoch in range(3)] for model in (plain, towers)]
    assert losses[1] == pytest.approx(losses[0], rel=0.01)
    assert losses[1][-1] < losses[1][0]
    assert {value.dtype for value in towers.dense_weights().values()} == {torch.float32}


def test_tensors_of_a_checkpoint_are_written_some_at_a_time(tmp_path, monkeypatch):
    from promptmm.distributed import checkpoints as module

    monkeypatch.setattr(module, "GROUP_BYTES", 100)
    checkpoints, tensors = module.Checkpoints(str(tmp_path)), {f"t{n}": torch.full((n, 2), float(n)) for n in (20, 1, 2, 3, 0, 30)}
    writer = checkpoints.shard_writer(1)
    checkpoints.add_tensors(writer, "dense", iter(tensors.items()))
    assert len(writer.files) == 3
    checkpoints.publish(1, {}, writer.files)
    folder, _ = checkpoints.complete(lambda name: True)[1]
    found = checkpoints.read_tensors(folder, "dense")
    assert set(found) == set(tensors)
    assert all(torch.equal(found[name], value) for name, value in tensors.items())


def test_sparse_adam_is_torchs():
    """Ten steps on rows that come and go, gradients of duplicates summed: to 1e-6."""
    from promptmm.distributed.sparse_adam import sparse_adam_

    generator = torch.Generator().manual_seed(0)
    table = torch.nn.Embedding(12, 3, sparse=True)
    ours = [table.weight.detach().clone(), torch.zeros(12, 3), torch.zeros(12, 3)]
    optimizer = torch.optim.SparseAdam(table.parameters(), lr=0.05)
    for step in range(10):
        ids, weights = torch.randint(12, (8,), generator=generator), torch.randn(8, 3, generator=generator)
        optimizer.zero_grad()
        (table(ids) * weights).sum().backward()
        optimizer.step()
        rows, at = torch.unique(ids, return_inverse=True)
        grad = torch.zeros(rows.numel(), 3).index_add_(0, at, weights)
        changed = [x[rows] for x in ours]
        sparse_adam_(*changed, grad, 0.05, step + 1)
        for mine, new in zip(ours, changed):
            mine[rows] = new
        torch.testing.assert_close(ours[0], table.weight.detach(), rtol=1e-6, atol=1e-6)


@pytest.fixture(scope="module")
def taught(dataset):
    """The dataset's folder with a teacher of random vectors beside it."""
    from promptmm.core.teacher import TeacherVectors
    from promptmm.distributed.teacher_artifact import write_revision

    folder = dataset.folder.parent
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(n, 6, generator=generator) for n in (120, 70) for _ in range(3)]
    vectors = TeacherVectors(rows[0], rows[3], {"a": rows[1], "b": rows[2]}, {"a": rows[4], "b": rows[5]}, None, None, {})
    write_revision(f"{folder}/teacher", 0, vectors, {"none": torch.zeros(1)}, {})
    return folder


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["student.kind=gcn", "distill.num_top=3", "student.user_balance=0.5"],
        ["student.kind=mf", "student.dim=5"],
        ["distill.use_teacher=false", "student.layers=3"],
        ["student.kind=mf", "student.dim=4", "student.warm_start=true"],
        ["student.warm_start=true"],
    ],
    ids=["lightgcn", "gcn", "mf", "alone", "warm and smaller", "warm"],
)
def test_all_neighbours_give_the_full_engines_student_step(client, dataset, taught, worker, overrides):
    """Terms and gradients of ID rows, maps and decoders to 1e-5; final vectors too."""
    import dataclasses

    from promptmm.core.distillation import Labels
    from promptmm.core.sampling import UnseenItems, candidate_lists, epoch_order
    from promptmm.distributed.labels import Labeler
    from promptmm.distributed.sampled_student import SampledStudent, StudentTables
    from promptmm.distributed.student_training import StudentTrainer, train_graph
    from promptmm.jobs.runs.worker_jobs import student_job
    from promptmm.jobs.settings import load_settings

    words = [f"run.dir={taught}", "student.dim=6", "student.train.batch_size=100", "student.init_scale=0.5", "distill.num_uniform=4"]
    settings = load_settings(None, [*words, "cluster.engine=sampled", "sampling.fan_outs=[-1]", "evaluation.cutoffs=[20]", *overrides])
    job = student_job(settings, dataset, 0)
    graph, threads = train_graph(dataset), torch.get_num_threads()
    full, sampled = StudentTrainer(dataclasses.replace(job, sampling=None), worker, graph), SampledStudent(job, worker, renamed(client))
    if job.config.use_teacher:
        labels = Labeler(job.label_job()).labels(0, 0).slice(slice(0, 100))
        torch.set_num_threads(threads)
        sampled._labels = lambda epoch: iter([(0, labels)])
    else:
        users, items = graph.users.rows, graph.users.columns
        order = epoch_order(job.num_examples, job.seed, 0)[:100]
        candidates = candidate_lists(users[order], items[order], order, UnseenItems(graph.users), 1, None, 0, job.seed, 0)
        labels = Labels(users[order], candidates)
    batch = next(iter(sampled.batches(0)))
    assert torch.equal(batch.blocks.items[batch.labels.candidates], labels.candidates)
    tables, everyone = StudentTables(sampled), [torch.arange(120), torch.arange(70)]
    tables.infer()
    for side, rows in zip((USERS, ITEMS), full.final_vectors()):
        torch.testing.assert_close(tables.final[side].pull(everyone[side]), rows, rtol=1e-5, atol=1e-6)
    terms, served = sampled.loss_terms(batch)
    torch.stack(list(terms.values())).sum().backward()
    full.optimizer.step = lambda: None
    wanted = full.train_step(labels, 100)
    assert set(terms) == set(wanted)
    for name, value in wanted.items():
        torch.testing.assert_close(terms[name], value, rtol=1e-5, atol=1e-7)
    for side, table in ((USERS, full.model.ids.user), (ITEMS, full.model.ids.item)):
        close(served[side].rows.grad, table.grad[sampled.own_ids[side][served[side].places]])
    gradients = dict(full.trained.named_parameters())
    for name, parameter in sampled.trained.named_parameters():
        if parameter.numel():
            close(parameter.grad, gradients[name].grad)


# Checkpoints: two workers through Ray, one in this process

CHECKPOINTED = TeacherConfig(
    dim=6, hidden=[10], dropout=0.3, train=OptimizerConfig(epochs=5, batch_size=16, learning_rate=0.01, checkpoint_every=1)
)


def job_of(folder, workers, epochs, service=None, lines=None):
    """The teacher's job in a run folder, up to an epoch."""
    import dataclasses

    from promptmm.core.config import EvaluationConfig
    from promptmm.distributed.config import ClusterConfig
    from promptmm.distributed.teacher_training import TeacherJob

    config = dataclasses.replace(CHECKPOINTED, train=dataclasses.replace(CHECKPOINTED.train, epochs=epochs))
    cluster = ClusterConfig(num_workers=workers)
    return TeacherJob(str(folder), config, EvaluationConfig(cutoffs=[5, 20]), cluster, 3, service, lines, {}, SamplingConfig(fan_outs=[2]))


def new_run(dataset, folder):
    folder.mkdir()
    (folder / "dataset").symlink_to(dataset.folder)
    return folder


@pytest.fixture(scope="module")
def one_worker(client, dataset, worker):
    """Trains in a run folder up to an epoch."""
    from promptmm.distributed.sampled_training import train_sampled_teacher

    return lambda folder, epochs: train_sampled_teacher(job_of(folder, 1, epochs), worker, renamed(client), dataset)


@pytest.fixture(scope="module")
def two_workers(ray_cluster, client):
    """The same with two workers on one host."""
    from promptmm.distributed.launch import fit, start_progress
    from promptmm.distributed.teacher_training import train_teacher_loop
    from promptmm.graph_store.dgl.service import start_service

    def train(folder, epochs):
        service, lines = start_service(str(client.folder)), start_progress()
        job = job_of(folder, 2, epochs, service, lines)
        try:
            fit("two", train_teacher_loop, {"job": job}, job.cluster, str(folder), lines)
        finally:
            ray_cluster.get(service.stop.remote(), timeout=60)

    return train


def rows_of(folder):
    return [json.loads(line) for line in (folder / "training" / "teacher" / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def undisturbed(one_worker, dataset, tmp_path_factory):
    """Losses of five epochs of one worker."""
    folder = new_run(dataset, tmp_path_factory.mktemp("undisturbed") / "run")
    one_worker(folder, 5)
    return [row["loss"] for row in rows_of(folder)]


@pytest.fixture(scope="module")
def begun_by_two(two_workers, dataset, tmp_path_factory):
    """A run of two epochs of two workers, with a checkpoint after each."""
    folder = new_run(dataset, tmp_path_factory.mktemp("two") / "run")
    two_workers(folder, 2)
    return folder


@pytest.fixture(scope="module")
def continued_by_one(begun_by_two, one_worker, tmp_path_factory):
    """One worker goes on up to the fourth epoch; a shard of the newest checkpoint was cut short."""
    folder = tmp_path_factory.mktemp("one") / "run"
    shutil.copytree(begun_by_two, folder, symlinks=True)
    shutil.rmtree(folder / "teacher")
    shards = sorted((folder / "training" / "teacher" / "checkpoints" / "epoch-000002").glob("user-*.safetensors"))
    assert len(shards) == 2  # one of each worker
    shards[1].write_bytes(shards[1].read_bytes()[:-8])
    with contextlib.redirect_stdout(io.StringIO()) as said:
        one_worker(folder, 4)
    return folder, said.getvalue()


def test_a_damaged_shard_falls_back_to_the_checkpoint_before(continued_by_one):
    _, said = continued_by_one
    assert "checkpoint left out" in said
    assert "user-" in said
    assert "resuming after epoch 0" in said


def test_checkpoints_of_two_workers_resume_on_one(continued_by_one, undisturbed):
    """Losses to 2e-5: sums in another order are the only difference."""
    folder, _ = continued_by_one
    assert [row["loss"] for row in rows_of(folder)] == pytest.approx(undisturbed[:4], rel=2e-5)


@pytest.mark.slow
def test_checkpoints_of_one_worker_resume_on_two(continued_by_one, two_workers, undisturbed, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(continued_by_one[0], folder, symlinks=True)
    shutil.rmtree(folder / "teacher")
    two_workers(folder, 5)
    rows = rows_of(folder)
    assert [row["loss"] for row in rows] == pytest.approx(undisturbed, rel=2e-5)
    assert [row["mib_sent"] > 0 for row in rows] == [True, False, False, False, True]  # one worker sends nothing


def test_the_plan_knows_what_a_step_sends(begun_by_two, dataset):
    """Ids, rows and gradients, within 25 % of what the first worker sent."""
    from promptmm.jobs.planning.plan import make_plan
    from promptmm.jobs.settings import load_settings

    words = ["cluster.engine=sampled", "cluster.num_workers=2", "sampling.fan_outs=[2]", "teacher.dim=6", "teacher.hidden=[10]"]
    plan = make_plan(load_settings(None, [*words, "teacher.train.batch_size=16"]), dataset, None)
    num_steps = -(-dataset.manifest["num_interactions"]["train"] // 16)
    for row in rows_of(begun_by_two):
        assert plan.steps["teacher"].exchanged_bytes == pytest.approx(row["mib_sent"] * 2**20 / num_steps, rel=0.25)
