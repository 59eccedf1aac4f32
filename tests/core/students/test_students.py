"""Students against their equations, whatever engine holds their rows (docs/method.md 2)."""

import numpy as np
import pytest
import torch
from promptmm.core.config import StudentConfig
from promptmm.core.graph import BipartiteGraph
from promptmm.core.kinds import STUDENTS
from promptmm.core.rows import IdTables
from promptmm.core.students import LayeredStudent, build_student, student_kind

NUM_USERS, NUM_ITEMS, DIM = 6, 5, 4
USERS = torch.tensor([0, 0, 0, 1, 2, 2, 3, 5, 5])
ITEMS = torch.tensor([0, 1, 4, 1, 0, 2, 1, 4, 2])
KINDS = STUDENTS.names
BATCH = torch.tensor([0, 2, 5, 0]), torch.tensor([1, 2, 4, 0]), torch.tensor([3, 1, 0, 2])  # users, positives, negatives


def draw(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def graph():
    return BipartiteGraph.from_pairs(USERS, ITEMS, NUM_USERS, NUM_ITEMS)


@pytest.fixture
def frozen():
    """A teacher's final vectors."""
    return draw(0, NUM_USERS, DIM), draw(1, NUM_ITEMS, DIM)


def build(kind, layers=2, seed=0):
    return build_student(StudentConfig(kind=kind, dim=3, layers=layers), seed, (DIM, DIM))


def rows_of(student, frozen, seed=0):
    """The student's rows as an engine hands them to it: learnt ID tables, or the teacher's vectors."""
    if not student.learns_rows:
        return frozen
    tables = IdTables.seeded(NUM_USERS, NUM_ITEMS, 3, 0.1, seed)
    return tables.user, tables.item


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind(graph, frozen, kind, layers):
    student = build(kind, layers=layers)
    own = rows_of(student, frozen)
    users, items = student.vectors(graph, *own)
    assert (users.shape, items.shape) == ((NUM_USERS, 3), (NUM_ITEMS, 3))
    rows = student.regularised(own[0][BATCH[0]], [own[1][BATCH[1]], own[1][BATCH[2]]])
    assert [r.shape for r in rows] == [(4, 3)] * 3
    (users.square().sum() + items.square().sum() + sum(r.square().sum() for r in rows)).backward()
    learnt = [*student.parameters(), *(own if student.learns_rows else ())]
    assert learnt
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in learnt)


@pytest.mark.parametrize("kind", KINDS)
def test_the_start_is_a_function_of_the_seed(graph, frozen, kind):
    before = torch.get_rng_state()
    students = [build(kind, seed=seed) for seed in (0, 0, 1)]
    first, again, other = (student.vectors(graph, *rows_of(student, frozen, seed)) for student, seed in zip(students, (0, 0, 1)))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[1], other[1])
    for mine, its in zip(students[0].parameters(), students[2].parameters()):
        assert not torch.equal(mine, its)


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_kind_says_of_itself(kind):
    """The sampled engine infers layer by layer, so that what it trains has to be made of layers on learnt rows."""
    found = student_kind(StudentConfig(kind=kind))
    assert found.component == "student"
    assert "full" in found.engines
    assert issubclass(found, LayeredStudent) == ("sampled" in found.engines)
    if "sampled" in found.engines:
        assert found.learns_rows
        assert [found.num_hops(StudentConfig(kind=kind, layers=n)) for n in (0, 3)] == [0, 0 if kind == "mf" else 3]


def test_mf_does_not_propagate(graph, frozen):
    student = build("mf", layers=3)
    own = rows_of(student, frozen)
    users, items = student.vectors(graph, *own)
    assert torch.equal(users, own[0])
    assert torch.equal(items, own[1])


def dense_normalised():
    adjacency = np.zeros((NUM_USERS, NUM_ITEMS))
    adjacency[USERS, ITEMS] = 1
    scale = np.sqrt(np.outer(adjacency.sum(1), adjacency.sum(0)))
    return np.divide(adjacency, scale, out=np.zeros_like(adjacency), where=adjacency > 0)


@pytest.mark.parametrize("kind", ["lightgcn", "gcn"])
def test_propagation(graph, frozen, kind):
    student, dense = build(kind), dense_normalised()
    own = rows_of(student, frozen)
    user_layers, item_layers = [own[0].detach().numpy()], [own[1].detach().numpy()]
    for layer in range(2):
        users, items = dense @ item_layers[-1], dense.T @ user_layers[-1]
        if kind == "gcn":
            weight, bias = (p.detach().numpy() for p in student.maps[layer].parameters())
            users = np.tanh((users + user_layers[-1]) @ weight.T + bias)
            items = np.tanh((items + item_layers[-1]) @ weight.T + bias)
        user_layers.append(users)
        item_layers.append(items)
    for actual, layers in zip(student.vectors(graph, *own), (user_layers, item_layers)):
        np.testing.assert_allclose(actual.detach(), np.mean(layers, axis=0), rtol=1e-5, atol=1e-6)


def test_rows_are_of_layer_0(frozen):
    student = build("lightgcn")
    tables = rows_of(student, frozen)
    users, items = student.regularised(tables[0][BATCH[0]], [tables[1][BATCH[2]]])
    assert torch.equal(users, tables[0][BATCH[0]])
    assert torch.equal(items, tables[1][BATCH[2]])


def test_the_mlp_sees_frozen_vectors_alone(graph, frozen):
    student = build("mlp")
    users, items = student.vectors(graph, *frozen)
    row_users, row_items = student.regularised(frozen[0][BATCH[0]], [frozen[1][BATCH[1]]])
    torch.testing.assert_close(row_users, users[BATCH[0]])
    torch.testing.assert_close(row_items, items[BATCH[1]])
    assert {name.split(".")[0] for name, _ in student.named_parameters()} == {"user_head", "item_head"}
    assert not student.learns_rows


def test_the_mlp_takes_users_and_items_of_any_size(graph):
    student = build_student(StudentConfig(kind="mlp", dim=3, layers=2), 0, (7, 2))
    users, items = student.vectors(graph, draw(0, NUM_USERS, 7), draw(1, NUM_ITEMS, 2))
    assert (users.shape, items.shape) == ((NUM_USERS, 3), (NUM_ITEMS, 3))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("warm_start", [True, False])
def test_what_needs_a_teacher(kind, warm_start):
    assert StudentConfig(kind=kind, warm_start=warm_start).starts_from_teacher == (warm_start or kind == "mlp")
