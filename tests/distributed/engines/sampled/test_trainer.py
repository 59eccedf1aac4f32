"""The sampled engine's trainer against the full one's, its batches, its inference and its optimizer."""

import pytest
import torch
from promptmm.core.sides import ITEMS, USERS

CONCAT = {"fusion": "concat", "modality_layers": 0, "whiten": True, "leave_one_out": True, "feature_temperature": 0.2}


def train_epoch(trainer, epoch):
    """The loss of an epoch of training."""
    from promptmm.distributed.loop.totals import Totals

    trainer.start_epoch(epoch)
    totals = Totals(trainer.worker)
    for batch in trainer.batches(epoch):
        totals.add(trainer.train_step(batch, epoch), batch.size / trainer.num_examples, "a test")
    trainer.end_epoch()
    return totals.loss


def check_steps(parity, sampled, full):
    learnt = sum(len(parity.check_step(sampled, full, epoch, step)) for epoch, step in ((0, 0), (2, 3)))
    assert learnt >= 2 * 2 * len(full.catalog.features)


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
def test_all_neighbours_give_the_full_engines_step(parity, teachers, teacher_config, settings):
    """Terms to 1e-5, gradients of ID rows, reduction layers and prompt to 1e-5 of the largest; dropout included: its mask is the items'."""
    check_steps(parity, *teachers(teacher_config(**settings), [-1]))


def test_the_engines_agree_on_int8_features(parity, teachers, teacher_config, int8_graph_url):
    """As on float32, on rows that are not the dataset's."""
    sampled, full = teachers(teacher_config(), [-1], int8_graph_url)
    exact, _ = teachers(teacher_config(), [-1])
    for modality, features in full.catalog.features.items():
        stored = exact.features.standardisation(modality).apply(*exact.features.features[modality].read(torch.arange(70)))
        difference = (features - stored).abs()
        assert 0 < float(difference.max()) < 0.05 * float(features.abs().max())
    check_steps(parity, sampled, full)
    losses = [train_epoch(sampled, epoch) for epoch in range(8)]
    assert losses[-1] < 0.9 * losses[0]


def test_the_batches_are_those_of_the_full_engine(teachers, teacher_config):
    """Same examples, same negatives; none of them a train item."""
    sampled, full = teachers(teacher_config(), [2])
    train = full.catalog.graph.users
    seen = {(u, i) for u, i in zip(train.rows.tolist(), train.columns.tolist())}
    visited = []
    for batch, whole in zip(sampled.batches(1), full.batches(1)):
        own = batch.own
        users, positives = batch.blocks.users[own.users], batch.blocks.items[own.positives]
        negatives = batch.blocks.items[own.negatives]
        visited += list(zip(users.tolist(), positives.tolist()))
        assert not seen & set(zip(users.tolist(), negatives.tolist()))
        for ours, theirs in ((users, whole.users), (positives, whole.positives), (negatives, whole.negatives)):
            assert torch.equal(ours, theirs)
    assert sorted(visited) == sorted(seen)


def test_a_step_is_a_function_of_its_place(parity, teachers, teacher_config):
    sampled, _ = teachers(teacher_config(), [2, 3])
    first, again, other = parity.batch(sampled, 1, 2), parity.batch(sampled, 1, 2), parity.batch(sampled, 2, 2)
    assert torch.equal(first.blocks.items, again.blocks.items)
    assert torch.equal(first.blocks.users_of[0].weights, again.blocks.users_of[0].weights)
    assert not torch.equal(first.blocks.users, other.blocks.users)
    assert int(first.blocks.users_of[0].rows.degrees.max()) == 2
    assert int(first.blocks.users_of[1].rows.degrees.max()) == 3


def seed_edges(batch) -> int:
    """Edges of the blocks, in both directions and all hops, that are pairs of the batch."""
    blocks, own = batch.blocks, batch.own
    users, items = blocks.users[own.users], blocks.items[own.items]
    positives = items[:, 0] if items.dim() == 2 else items[: users.numel()]
    pairs, found = set(zip(users.tolist(), positives.tolist())), 0
    for hops, order in ((blocks.users_of, 1), (blocks.items_of, -1)):
        for hop in hops:
            ends = [(blocks.users, blocks.items)[::order][place][ids] for place, ids in enumerate((hop.rows.rows, hop.rows.columns))]
            found += sum(pair in pairs for pair in zip(*(x.tolist() for x in ends[::order])))
    return found


@pytest.mark.parametrize("excluded", [True, False])
def test_seed_edges_stay_or_are_left_out(teachers, teacher_config, students, student_settings, dataset, excluded):
    """Teacher's blocks and student's, whose later epochs take earlier epochs' labels."""
    from promptmm.distributed.execution.local import LocalExecutor
    from promptmm.jobs.runs.worker_jobs import student_job

    sampled, _ = teachers(teacher_config(), [8], exclude_seed_edges=excluded)
    for batch in sampled.batches(1):
        assert (seed_edges(batch) == 0) == excluded
    words = ["sampling.fan_outs=[8]", f"sampling.exclude_seed_edges={excluded}", "labels.mode=materialised"]
    settings = student_settings(*words)
    job = student_job(settings, dataset, 0)
    LocalExecutor(settings.cluster, settings.dir, dataset).label(job.label_job(), job.run_url, 2, {})
    student, _ = students(*words)
    student.open(range(3, 4))
    batches = list(student.batches(3))
    assert {batch.own.order_epoch for batch in batches} == {1}
    for batch in batches:
        assert (seed_edges(batch) == 0) == excluded


@pytest.mark.parametrize("settings", [{}, {"modality_layers": 2, "layers": 0}, {"prompt": False, "layers": 3}, CONCAT])
def test_exact_inference_is_the_full_engines(parity, teachers, teacher_config, settings):
    sampled, full = teachers(teacher_config(**settings), [2])
    for batch in sampled.batches(0):  # some training, so that no weight is at its start
        sampled.train_step(batch, 0)
    parity.copy_weights(sampled, full)
    parity.check_vectors(sampled, full, 1e-4, 1e-5)


@pytest.mark.parametrize(("num_rows", "num_edges"), [(16_384, 40), (7, 40), (16_384, 1)])
def test_chunks_of_few_edges_give_the_same_sums(teachers, teacher_config, monkeypatch, num_rows, num_edges):
    """Also where a row has more edges than a chunk."""
    from promptmm.distributed.engines.sampled import inference

    sampled, full = teachers(teacher_config(), [2])
    monkeypatch.setattr(inference, "CHUNK_ROWS", num_rows)
    monkeypatch.setattr(inference, "CHUNK_EDGES", num_edges)
    graph, client = full.catalog.graph, sampled.connection
    for side, rows, spread in ((USERS, graph.users, graph.to_users), (ITEMS, graph.items, graph.to_items)):
        sizes = [rows.degrees[places].sum().item() for places in inference.edge_chunks(client, side)]
        longest = max(len(places) for places in inference.edge_chunks(client, side))
        assert torch.equal(torch.cat(list(inference.edge_chunks(client, side))), torch.arange(rows.num_rows))
        assert int(rows.degrees.max()) > num_edges or num_edges == 40
        assert max(sizes) <= max(num_edges, int(rows.degrees.max()))
        assert longest <= num_rows
        source, target = (sampled.inference.tables(name, 5) for name in (f"source {side}", f"target {side}"))
        values = torch.randn(len(source[1 - side]), 5, generator=torch.Generator().manual_seed(0))
        source[1 - side].write(torch.arange(len(source[1 - side])), values)
        sampled.inference.propagate(source, target, side)
        found = target[side].read(torch.arange(len(target[side])))
        torch.testing.assert_close(found, spread(values), rtol=1e-5, atol=1e-6)


def test_small_fan_outs_learn(teachers, teacher_config):
    sampled, _ = teachers(teacher_config(), [3])
    losses = [train_epoch(sampled, epoch) for epoch in range(12)]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])


def weights_of(trainer):
    from promptmm.distributed.engines.learners import whole_weights

    return whole_weights(trainer.learners)


@pytest.mark.parametrize("zero_stage", [None, 0, 3], ids=["plain", "zero 0", "zero 3"])
def test_micro_batches_take_the_whole_batchs_steps(request, parity, teachers, teacher_config, zero_stage):
    """An epoch of steps, with one sparse Adam step on a row's summed gradients each: losses to 1e-5, ID rows and weights to 1e-5."""
    config, modes = teacher_config(), {} if zero_stage is None else {"zero_stage": zero_stage}
    if zero_stage is not None:
        request.getfixturevalue("process_group")
    whole, cut = teachers(config, [2])[0], teachers(config, [2], micro_batches=3, **modes)[0]
    parts = [parity.batch(cut, 1, 2, part) for part in range(3)]
    batch = parity.batch(whole, 1, 2)
    examples = [sorted(zip(*(ids[rows].tolist() for ids, rows in triples(b)))) for b in (batch, *parts)]
    assert examples[0] == sorted(examples[1] + examples[2] + examples[3])
    decayed = [b.items[b.own.further].tolist() for b in (batch, *parts)]
    assert sorted(decayed[0]) == sorted(i for part in decayed[1:] for i in part)
    losses = [train_epoch(model, 0) for model in (whole, cut)]
    # A step's loss is the sum of its micro-batches', and each of these counts with the step's share of the epoch
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert whole.num_steps_taken == cut.num_steps_taken == whole.num_steps
    for side, count in ((USERS, 120), (ITEMS, 70)):
        found = [model.ids[side].tables["weight"].pull(torch.arange(count)) for model in (whole, cut)]
        torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-5)
    weights = [weights_of(model) for model in (whole, cut)]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=0, atol=1e-5)


def triples(batch):
    own, blocks = batch.own, batch.blocks
    return (blocks.users, own.users), (blocks.items, own.positives), (blocks.items, own.negatives)


def test_all_of_deepspeed_at_once_learns_and_rounds_little(process_group, teachers, teacher_config):
    """bfloat16, ZeRO 3, everything offloaded, micro-batches and recomputed activations beside plain float32: epoch losses to 1 %."""
    plain = teachers(teacher_config(), [3])[0]
    modes = {"zero_stage": 3, "offload_optimizer": True, "offload_parameters": True, "micro_batches": 2, "checkpoint_activations": True}
    towers = teachers(teacher_config(reduction_dtype="bfloat16"), [3], **modes)[0]
    losses = [[train_epoch(model, epoch) for epoch in range(3)] for model in (plain, towers)]
    assert losses[1] == pytest.approx(losses[0], rel=0.01)
    assert losses[1][-1] < losses[1][0]
    assert {value.dtype for value in weights_of(towers).values()} == {torch.float32}


def test_sparse_adam_is_torchs():
    """Ten steps on rows that come and go, gradients of duplicates summed: to 1e-6."""
    from promptmm.distributed.engines.sampled.sparse_adam import sparse_adam_

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
def test_all_neighbours_give_the_full_engines_student_step(parity, students, overrides):
    """Terms and gradients of ID rows, maps and decoders to 1e-5; final vectors too."""
    sampled, full = students(*overrides)
    for trainer in (sampled, full):
        trainer.open(range(1))
    parity.check_vectors(sampled, full, 1e-5, 1e-6)
    parity.check_step(sampled, full, 0, 0)
    for trainer in (sampled, full):
        trainer.close()
