"""The sampled engine with all neighbours is the full one: terms, gradients and exact inference, of every kind that declares both engines.

The kinds are those of the registries, so that a new one is tested here as soon as it says that both engines train it.
"""

import pytest
import torch
from promptmm.core.config import DistillationConfig, TeacherConfig
from promptmm.core.kinds import CANDIDATES, LOSSES, STUDENTS, TEACHERS
from promptmm.core.linear.config import LinearConfig
from promptmm.core.linear.fit import LinearInputs


def of_both(registry):
    return [name for name in registry.names if "sampled" in registry.get(name).engines]


def train_some(sampled):
    """So that no weight is at its start."""
    sampled.start_epoch(0)
    for batch in sampled.batches(0):
        sampled.train_step(batch, 0)


WEIGHTED = {"user_exponent": 0.3, "item_exponent": 0.4, "output_exponent": 0.2}
FITTED = {  # settings of `teacher.linear` by kind: those that have to be given over shards
    "spectral": [
        {"rank": 12, "user_exponent": 1.0, "item_exponent": 0.5, "output_exponent": 0.5, "filter": "ideal"},
        {"rank": 5, **WEIGHTED, "filter": "ideal"},
    ],
    "polynomial": [
        {"rank": 12, "user_exponent": 1.0, "item_exponent": 0.5, "output_exponent": 0.5, "degree": 1},
        {"rank": 6, **WEIGHTED, "degree": 5},
        {"rank": 70, **WEIGHTED, "degree": 2},  # as many as items: exact
    ],
}


def check(parity, sampled, full):
    """Two steps, one of a later epoch, and inference before and after some training."""
    for trainer in (sampled, full):
        trainer.open(range(3))
    try:
        # Streamed labels come in order, epoch by epoch, so that a batch of a later epoch asks for all before it
        parity.check_step(sampled, full, 0, 1)
        parity.check_vectors(sampled, full, 1e-5, 1e-6)
    finally:
        for trainer in (sampled, full):
            trainer.close()
    sampled.open(range(1))
    train_some(sampled)
    sampled.close()
    parity.copy_weights(sampled, full)
    parity.check_vectors(sampled, full, 1e-4, 1e-5)


# an ensemble is what its components are, and tests/distributed/tasks/test_ensemble.py compares their sum
@pytest.mark.parametrize("kind", [kind for kind in of_both(TEACHERS) if TEACHERS.get(kind).takes_steps() and kind != "ensemble"])
def test_teachers(parity, teachers, teacher_config, kind):
    check(parity, *teachers(teacher_config(kind=kind), [-1]))


@pytest.mark.parametrize("kind", [kind for kind in of_both(TEACHERS) if TEACHERS.get(kind).is_fitted])
def test_fitted_teachers(parity, dataset, graph_url, worker, kind):
    """The same scores from vectors that no worker holds whole."""
    from promptmm.distributed.engines.sampled.sharded_blocks import ShardedBlocks
    from promptmm.distributed.execution.dataset_graph import train_graph
    from promptmm.graph_store.dgl.standalone import connect_alone

    for settings in FITTED[kind]:
        config = LinearConfig(**settings)
        assert TEACHERS.get(kind).why_full(TeacherConfig(kind=kind, linear=config)) is None
        full = TEACHERS.get(kind).fit(LinearInputs(train_graph(dataset), {}, 3), config)
        with torch.no_grad():
            blocks = TEACHERS.get(kind).fit_blocks(ShardedBlocks(connect_alone(graph_url), worker, "teacher"), config, 3)
        users, items = (block.pull(everyone) for block, everyone in zip(blocks, parity.EVERYONE))
        assert users.shape[1] == settings["rank"]
        parity.close(users.double() @ items.double().T, full.users.double() @ full.items.double().T)


@pytest.mark.parametrize("kind", of_both(STUDENTS))
def test_students(parity, students, kind):
    check(parity, *students(f"student.kind={kind}"))


@pytest.mark.parametrize("name", LOSSES.names)
def test_losses_one_by_one(parity, students, name):
    """Each is switched on alone: the other terms are BPR and L2."""
    weights = [f"distill.{other}_weight={float(other == name)}" for other in LOSSES.names]
    sampled, full = students(*weights, "distill.decoder=true")
    for trainer in (sampled, full):
        trainer.open(range(1))
    batch = parity.batch(full, 0, 0)
    assert name in full.task.terms(full.view(), batch)
    for trainer in (sampled, full):
        trainer.close()
        trainer.open(range(1))
    learnt = parity.check_step(sampled, full, 0, 0)
    assert any("decoders" in each for each in learnt) == (name == "embedding")
    for trainer in (sampled, full):
        trainer.close()


def test_weights_of_the_examples(parity, students):
    check(parity, *students("student.user_balance=0.5", "distill.user_balance=1", "distill.score_weight=1"))


def test_examples_by_user(parity, teachers, students, teacher_config):
    check(parity, *teachers(teacher_config(examples="users"), [-1]))
    check(parity, *students("student.examples=users", "student.bpr_weight=0.5", "distill.score_weight=1"))


@pytest.mark.parametrize(
    "settings",
    [{"softmax_items": 30}, {"softmax_items": 30, "examples": "histories"}, {"fusion": "concat", "examples": "users"}],
    ids=["some items", "histories", "all items"],
)
def test_the_softmax_loss(parity, teachers, teacher_config, settings):
    check(parity, *teachers(teacher_config(loss="softmax", **settings), [-1]))


@pytest.mark.parametrize("policy", CANDIDATES.names)
def test_candidate_policies(parity, students, policy):
    more = ["distill.num_top=3"] if CANDIDATES.get(policy)(DistillationConfig(num_top=3)).depth else []
    check(parity, *students(f"distill.candidates={policy}", *more))


@pytest.mark.parametrize("exponents", [(0.5, 0.5), (0.75, 0.2)], ids=["normalised", "other exponents"])
@pytest.mark.parametrize("stage", ["teacher", "student"])
def test_the_spectral_start(parity, teachers, students, teacher_config, stage, exponents):
    names = ("start_user_exponent", "start_item_exponent")
    if stage == "teacher":
        sampled, full = teachers(teacher_config(start="spectral", **dict(zip(names, exponents))), [-1])
    else:
        sampled, full = students("student.start=spectral", *(f"student.{name}={value}" for name, value in zip(names, exponents)))
    for ids, table, everyone in zip(sampled.ids, (full.tables.user, full.tables.item), parity.EVERYONE, strict=True):
        parity.close(ids.tables["weight"].pull(everyone), table.detach())
    check(parity, sampled, full)
