"""The sampled engine against the full one, in this process: DGL's standalone store runs the same code as its servers, for one part."""

import os
from types import SimpleNamespace

import pytest
import torch
from promptmm.core.blocks import ITEMS, USERS
from promptmm.core.config import OptimizerConfig, SamplingConfig, TeacherConfig
from promptmm.core.storage import read_json
from promptmm.core.teacher import teacher_loss
from promptmm.graph_store.config import GraphConfig, SourceConfig
from promptmm.graph_store.dataset import open_dataset, write_dataset
from promptmm.graph_store.feature_rows import map_features
from promptmm.graph_store.formats import load_catalog
from promptmm.graph_store.partition import partition

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
    from promptmm.graph_store.client import GraphClient

    dgl.distributed.initialize(None)
    graph = dgl.distributed.DistGraph("promptmm", part_config=str(folder / "promptmm.json"))
    return GraphClient(graph, {"session": "alone", "locations": [("here", str(folder))]}, folder, 0, ["here"])


@pytest.fixture(scope="module")
def worker():
    from promptmm.distributed.worker import Worker

    return Worker(0, 1, torch.device("cpu"), ("here",))


def teacher_config(**settings):
    train = OptimizerConfig(batch_size=80, learning_rate=0.01)  # more than the items: the feature decay is then over all of them
    return TeacherConfig(**{"dim": 6, "hidden": [10], "layers": 2, "dropout": 0.3, "train": train, **settings})


class Named:
    """The client with other names for its tables: standalone tensors live as long as the process."""

    count = 0

    def __new__(cls, client):
        Named.count += 1
        return SimpleNamespace(**{**client.__dict__, "suffix": f"_{Named.count}", "train_rows": client.train_rows})


@pytest.fixture(scope="module")
def int8_client(client, dataset, tmp_path_factory):
    """The client of a graph with the same structure, whose features are int8."""
    folder = tmp_path_factory.mktemp("int8") / "graph"
    partition(dataset, str(folder), GraphConfig(features="int8"))
    manifest = read_json(str(folder / "manifest.json"))
    return SimpleNamespace(**{**client.__dict__, "folder": folder, "manifest": manifest, "train_rows": client.train_rows})


@pytest.fixture
def both(client, dataset, worker):
    """(sampled, full) with the same settings and seed; features: a graph's, instead of the dataset's."""
    from promptmm.distributed.config import ClusterConfig
    from promptmm.distributed.resident import build_resident
    from promptmm.distributed.sampled_teacher import SampledTeacher
    from promptmm.distributed.student_training import train_graph
    from promptmm.distributed.teacher_training import TeacherJob, TeacherTrainer
    from promptmm.graph_store.client import ItemShard

    def make(config, fan_outs, client=client):
        sampled = SampledTeacher(Named(client), worker, config, SamplingConfig(fan_outs=fan_outs), 0, 3)
        loaded = {m: map_features(client.folder, client.manifest, 0, m) for m in dataset.modalities}
        rows, present = {m: x.values() for m, x in loaded.items()}, {m: torch.from_numpy(x.present) for m, x in loaded.items()}
        resident = build_resident(worker, config, train_graph(dataset), ItemShard(torch.arange(dataset.num_items), rows, present))
        return sampled, TeacherTrainer(TeacherJob("", config, None, ClusterConfig(), 3, None, None), worker, resident)

    return make


def whole_gradients(full, batch, config, epoch):
    """Terms and gradients of the full engine on the sampled engine's batch."""
    blocks, resident = batch.blocks, full.resident
    vectors = resident.vectors(full.engine, full.ids.user, full.ids.item, (3, epoch * full.num_steps + batch.step))
    triples = blocks.users[batch.users], blocks.items[batch.positives], blocks.items[batch.negatives]
    terms = teacher_loss(vectors, full.ids.user, full.ids.item, *triples, batch.size, config)
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
    ],
    ids=["default", "no prompt in the vectors", "two rounds", "no prompt", "few terms"],
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


@pytest.mark.parametrize("settings", [{}, {"modality_layers": 2, "layers": 0}, {"prompt": False, "layers": 3}])
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
    from promptmm.graph_store.embeddings import ShardedTable

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
        source, target = (ShardedTable(Named(client), s, f"chunks_{s}", 5) for s in (1 - side, side))
        values = torch.randn(len(source), 5, generator=torch.Generator().manual_seed(0))
        source.write(torch.arange(len(source)), values)
        layerwise.propagate(client, sampled.own_ids, source, target)
        torch.testing.assert_close(target.read(torch.arange(len(target))), spread(values), rtol=1e-5, atol=1e-6)


def test_small_fan_outs_learn(both):
    sampled, _ = both(teacher_config(), [3])
    losses = [sampled.train_epoch(epoch, None)["loss"] for epoch in range(12)]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])


def test_sparse_adam_is_torchs():
    """Ten steps on rows that come and go, gradients of duplicates summed: to 1e-6."""
    from promptmm.distributed.sparse_adam import sparse_adam

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
        for mine, new in zip(ours, sparse_adam(*(x[rows] for x in ours), grad, 0.05, step + 1)):
            mine[rows] = new
        torch.testing.assert_close(ours[0], table.weight.detach(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("part_nodes", "worker_nodes"),
    [(["a"], ["a"]), (["a"], ["a", "a", "a"]), (["a", "b", "c"], ["b"]), (["a", "b", "c"], ["c", "a", "a"]), (["a", "b"], ["a", "b"])],
)
def test_every_node_has_one_owner(dataset, tmp_path, part_nodes, worker_nodes):
    """Also with fewer workers than parts, and with several workers on a host."""
    from promptmm.graph_store.embeddings import Owners
    from promptmm.graph_store.neighbours import NodeNumbers

    partition(dataset, str(tmp_path / "graph"), GraphConfig(num_parts=len(part_nodes), method="hash"))
    owners = Owners(NodeNumbers(tmp_path / "graph"), part_nodes, worker_nodes)
    for side, count in ((USERS, dataset.num_users), (ITEMS, dataset.num_items)):
        everyone = torch.arange(count)
        ranks, places = owners.find(side, everyone)
        for rank in range(len(worker_nodes)):
            own = owners.own_ids(side, rank, tmp_path / "graph")
            assert torch.equal(own[places[ranks == rank]], everyone[ranks == rank])
            assert own.numel() == int((ranks == rank).sum())
        parts, _ = owners.numbers.locate(side, everyone)
        for part, node in enumerate(part_nodes):
            if node in worker_nodes:  # owned where it lies
                assert {worker_nodes[r] for r in ranks[parts == part].tolist()} == {node}


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
        ["student.kind=gcn", "distill.num_top=3"],
        ["student.kind=mf", "student.dim=5"],
        ["distill.use_teacher=false", "student.layers=3"],
    ],
    ids=["lightgcn", "gcn", "mf", "alone"],
)
def test_all_neighbours_give_the_full_engines_student_step(client, dataset, taught, worker, overrides):
    """Terms and gradients of ID rows, maps and decoders to 1e-5; final vectors too."""
    import dataclasses

    from promptmm.core.distillation import Labels
    from promptmm.core.sampling import UnseenItems, candidate_lists, epoch_order
    from promptmm.distributed.labels import Labeler
    from promptmm.distributed.sampled_student import SampledStudent, StudentTables
    from promptmm.distributed.student_training import StudentTrainer, train_graph
    from promptmm.jobs.settings import load_settings
    from promptmm.jobs.verbs import student_job

    words = [f"run.dir={taught}", "student.dim=6", "student.train.batch_size=100", "student.init_scale=0.5", "distill.num_uniform=4"]
    settings = load_settings(None, [*words, "cluster.engine=sampled", "sampling.fan_outs=[-1]", "evaluation.cutoffs=[20]", *overrides])
    job = student_job(settings, dataset, 0)
    graph, threads = train_graph(dataset), torch.get_num_threads()
    full, sampled = StudentTrainer(dataclasses.replace(job, sampling=None), worker, graph), SampledStudent(job, worker, Named(client))
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
