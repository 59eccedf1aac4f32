"""Sampled blocks against the whole graph: exact at full fan-out, unbiased below it, and a function of their keys alone."""

import pytest
import torch
from promptmm.core.blocks import Blocks, graph_sampler, neighbour_keys, sample_neighbours, without_pairs
from promptmm.core.config import StudentConfig, TeacherConfig
from promptmm.core.graph import BipartiteGraph, light_propagation
from promptmm.core.kinds import STUDENTS
from promptmm.core.random import random_bits
from promptmm.core.sampling import sample_edges
from promptmm.core.sides import ITEMS, USERS
from promptmm.core.students import build_student
from promptmm.core.teacher import Triples
from promptmm.core.teacher.model import PromptTeacher, teacher_loss, teacher_vectors

NUM_USERS, NUM_ITEMS, DIM = 40, 30, 4


@pytest.fixture(scope="module")
def graph():
    """Busy and idle nodes; user 7 and item 3 have no interaction."""
    generator = torch.Generator().manual_seed(0)
    share = torch.rand(NUM_USERS, 1, generator=generator) * torch.rand(1, NUM_ITEMS, generator=generator)
    pairs = (torch.rand(NUM_USERS, NUM_ITEMS, generator=generator) < share).nonzero()
    pairs = pairs[(pairs[:, 0] != 7) & (pairs[:, 1] != 3)]
    return BipartiteGraph.from_pairs(pairs[:, 0], pairs[:, 1], NUM_USERS, NUM_ITEMS)


def draw(seed, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def seeds():
    return torch.tensor([7, 0, 21, 39]), torch.tensor([3, 29, 11, 0, 5])


def blocks_of(graph, fan_outs, step=0):
    return Blocks.sample(graph_sampler(graph, fan_outs, 5, step), *seeds(), len(fan_outs))


def test_levels_are_prefixes_without_duplicates(graph):
    blocks = blocks_of(graph, [3, 2, 2])
    for ids, counts, first in ((blocks.users, blocks.num_users, seeds()[0]), (blocks.items, blocks.num_items, seeds()[1])):
        assert ids.unique().numel() == ids.numel() == counts[-1]
        assert torch.equal(ids[: counts[0]], first)
        assert counts == sorted(counts)
    for hop in range(3):
        assert blocks.users_of[hop].rows.num_rows == blocks.num_users[hop]
        assert int(blocks.users_of[hop].rows.degrees.max()) <= [3, 2, 2][hop]
        assert int(blocks.items_of[hop].rows.columns.max()) < blocks.num_users[hop + 1]


@pytest.mark.parametrize("num_layers", [0, 1, 3])
def test_full_fan_out_is_the_whole_graph(graph, num_layers):
    blocks = blocks_of(graph, [-1] * num_layers)
    users, items = draw(1, NUM_USERS, DIM).requires_grad_(), draw(2, NUM_ITEMS, DIM).requires_grad_()
    whole = light_propagation(graph, users, items, num_layers)
    part = light_propagation(blocks, users[blocks.users], items[blocks.items], num_layers)
    wanted = whole[0][seeds()[0]], whole[1][seeds()[1]]
    for a, b in zip(part, wanted):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    weights = draw(3, 4, DIM), draw(4, 5, DIM)
    gradients = [torch.autograd.grad(sum((v * w).sum() for v, w in zip(out, weights)), (users, items)) for out in (part, wanted)]
    for a, b in zip(*gradients):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rounds", [1, 2])
def test_the_teacher_at_full_fan_out(graph, rounds):
    config = TeacherConfig(dim=DIM, layers=3, modality_layers=rounds, id_prompt_weight=0.3, feature_decay=0.0, prompt_loss_weight=0.5)
    blocks = blocks_of(graph, [-1] * PromptTeacher.num_hops(config))
    leaves = {
        "users": draw(1, NUM_USERS, DIM), "items": draw(2, NUM_ITEMS, DIM), "p_user": draw(3, NUM_USERS, DIM),
        "p_item": draw(4, NUM_ITEMS, DIM), "image": draw(5, NUM_ITEMS, DIM), "text": draw(6, NUM_ITEMS, DIM),
    }  # fmt: skip
    leaves = {name: x.requires_grad_() for name, x in leaves.items()}

    def loss(where, at_users, at_items, batch):
        users, items = leaves["users"][at_users], leaves["items"][at_items]
        prompt = {"user": leaves["p_user"][at_users], "item": leaves["p_item"][at_items]}
        vectors = teacher_vectors(where, users, items, prompt, {m: leaves[m][at_items] for m in ("image", "text")}, config)
        return torch.stack(list(teacher_loss(vectors, users, items, Triples(*batch, 3), config).values())).sum()

    user_seeds, item_seeds = seeds()
    local = torch.tensor([0, 1, 3]), torch.tensor([1, 2, 4]), torch.tensor([0, 3, 1])
    whole = loss(
        graph, torch.arange(NUM_USERS), torch.arange(NUM_ITEMS), (user_seeds[local[0]], item_seeds[local[1]], item_seeds[local[2]])
    )
    part = loss(blocks, blocks.users, blocks.items, local)
    torch.testing.assert_close(part, whole, rtol=1e-12, atol=1e-12)
    for a, b in zip(torch.autograd.grad(part, list(leaves.values())), torch.autograd.grad(whole, list(leaves.values()))):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", [name for name in STUDENTS.names if "sampled" in STUDENTS.get(name).engines])
@pytest.mark.parametrize("layers", [0, 1, 3])
def test_students_at_full_fan_out(graph, kind, layers):
    """Every student that the sampled engine trains: vectors, and gradients of rows and of its own weights, are those of the whole graph."""
    config = StudentConfig(kind=kind, dim=DIM, layers=layers)
    student = build_student(config, seed=0)
    blocks = blocks_of(graph, [-1] * student.num_hops(config))
    users, items = draw(1, NUM_USERS, DIM).float().requires_grad_(), draw(2, NUM_ITEMS, DIM).float().requires_grad_()
    whole = [vectors[ids] for vectors, ids in zip(student.vectors(graph, users, items), seeds())]
    part = student.vectors(blocks, users[blocks.users], items[blocks.items])
    weights = draw(3, 4, DIM).float(), draw(4, 5, DIM).float()
    leaves = [users, items, *student.parameters()]
    gradients = [torch.autograd.grad(sum((v * w).sum() for v, w in zip(out, weights)), leaves) for out in (part, whole)]
    for a, b in zip(part, whole):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    for a, b in zip(*gradients):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert all(gradient.any() for gradient in gradients[0])


def test_small_fan_outs_are_unbiased(graph):
    """The mean of many sampled propagations approaches the full one: within 4 standard errors everywhere, paths that return included."""
    users, items = draw(1, NUM_USERS, DIM), draw(2, NUM_ITEMS, DIM)
    whole = light_propagation(graph, users, items, 3)
    sampled = []
    for step in range(3000):
        blocks = blocks_of(graph, [2, 2, 2], step)
        sampled.append(torch.cat(light_propagation(blocks, users[blocks.users], items[blocks.items], 3)))
    values = torch.stack(sampled)
    error = (values.mean(0) - torch.cat([whole[0][seeds()[0]], whole[1][seeds()[1]]])).abs()
    assert bool((error <= 4 * values.std(0) / len(sampled) ** 0.5 + 1e-9).all())
    assert float(values.std(0).max()) > 0.01


def test_draws_depend_on_the_node_not_on_its_place(graph):
    rows = torch.arange(NUM_USERS)
    whole = sample_neighbours(graph.users.pointers, graph.users.columns, graph.user_weights, rows, 3, *neighbour_keys(USERS, rows, 1, 2, 0))
    some = torch.tensor([30, 2, 11])
    part = sample_neighbours(graph.users.pointers, graph.users.columns, graph.user_weights, some, 3, *neighbour_keys(USERS, some, 1, 2, 0))
    for place, row in enumerate(some.tolist()):
        mine, all_of_it = slice(*part.pointers[place : place + 2].tolist()), slice(*whole.pointers[row : row + 2].tolist())
        assert torch.equal(part.ids[mine], whole.ids[all_of_it])
        assert torch.equal(part.weights[mine], whole.weights[all_of_it])


def test_edges_are_uniform_without_replacement():
    """Every pair of 7 edges is drawn equally often: 21 pairs, 21,000 draws, each within 5 standard deviations of 1,000."""
    pointers, rows = torch.tensor([0, 2, 9, 9]), torch.ones(21_000, dtype=torch.int64)
    out, edges = sample_edges(pointers, rows, 2, 3, torch.arange(21_000))
    assert torch.equal(out, torch.arange(0, 42_001, 2))
    pairs = edges.reshape(-1, 2)
    assert bool((pairs[:, 0] < pairs[:, 1]).all())
    counts = torch.unique(pairs, dim=0, return_counts=True)[1]
    assert counts.numel() == 21
    assert int((counts - 1000).abs().max()) < 5 * (1000 * 20 / 21) ** 0.5


def test_rows_with_few_edges_keep_all():
    pointers = torch.tensor([0, 2, 9, 9])
    out, edges = sample_edges(pointers, torch.tensor([2, 0, 1]), 2, 1, torch.tensor([2, 0, 1]))
    assert out.tolist() == [0, 0, 2, 4]
    assert edges[:2].tolist() == [0, 1]
    out, edges = sample_edges(pointers, torch.tensor([1, 0]), -1)
    assert out.tolist() == [0, 7, 9]
    assert edges.tolist() == [2, 3, 4, 5, 6, 7, 8, 0, 1]


def test_no_seed_of_one_kind(graph):
    none = torch.zeros(0, dtype=torch.int64)
    blocks = Blocks.sample(graph_sampler(graph, [2, 2], 0, 0), torch.tensor([1]), none, 2)
    assert blocks.num_items[0] == 0
    users, items = light_propagation(blocks, draw(1, NUM_USERS, DIM)[blocks.users], draw(2, NUM_ITEMS, DIM)[blocks.items], 2)
    assert users.shape == (1, DIM)
    assert items.shape == (0, DIM)


def test_keys_differ_by_side():
    ids = torch.tensor([4])
    assert not torch.equal(random_bits(*neighbour_keys(USERS, ids, 1, 2, 0)), random_bits(*neighbour_keys(ITEMS, ids, 1, 2, 0)))


def left_out(graph):
    """Some train pairs, one of them twice, and the graph's weights with their entries at zero."""
    users, items = (x[[0, 3, 50, 51, 3, 120]] for x in (graph.users.rows, graph.users.columns))
    keys = users * NUM_ITEMS + items
    zero = [
        torch.where(torch.isin(of_row, keys), 0.0, weights)
        for of_row, weights in (
            (graph.users.rows * NUM_ITEMS + graph.users.columns, graph.user_weights),
            (graph.items.columns * NUM_ITEMS + graph.items.rows, graph.item_weights),
        )
    ]
    return users, items, BipartiteGraph(graph.users, graph.items, *zero)


def blocks_without(graph, fan_outs, users, items, step=0):
    sampler = without_pairs(graph_sampler(graph, fan_outs, 5, step), users, items, NUM_ITEMS)
    return Blocks.sample(sampler, users.unique(), items.unique(), len(fan_outs))


def edges_of(blocks):
    """All (user, item) pairs of all hops and both directions."""
    found = set()
    for to_users, to_items in zip(blocks.users_of, blocks.items_of):
        found |= set(zip(blocks.users[to_users.rows.rows].tolist(), blocks.items[to_users.rows.columns].tolist()))
        found |= set(zip(blocks.users[to_items.rows.columns].tolist(), blocks.items[to_items.rows.rows].tolist()))
    return found


def test_excluded_pairs_are_in_no_hop_and_direction(graph):
    users, items, _ = left_out(graph)
    pairs, whole = set(zip(users.tolist(), items.tolist())), Blocks.sample(graph_sampler(graph, [-1, -1], 0, 0), *left_out(graph)[:2], 2)
    assert pairs <= edges_of(whole)
    for fan_out in (-1, 2):
        blocks = blocks_without(graph, [fan_out, fan_out], users, items)
        assert not pairs & edges_of(blocks)
        assert len(edges_of(blocks)) > len(pairs)
    again = blocks_without(graph, [2, 2], users, items)
    assert torch.equal(again.users, blocks.users)
    assert torch.equal(again.users_of[1].weights, blocks.users_of[1].weights)


def test_all_neighbours_but_the_excluded_are_the_graph_without_them(graph):
    users, items, zeroed = left_out(graph)
    rows = draw(1, NUM_USERS, DIM), draw(2, NUM_ITEMS, DIM)
    blocks = blocks_without(graph, [-1, -1], users, items)
    wanted = light_propagation(zeroed, *rows, 2)
    for out, whole, ids in zip(light_propagation(blocks, rows[0][blocks.users], rows[1][blocks.items], 2), wanted, (users, items)):
        torch.testing.assert_close(out, whole[ids.unique()], rtol=1e-12, atol=1e-12)


def test_sums_without_the_excluded_are_unbiased(graph):
    """The mean of many draws of fan-out 2: within 4 standard errors of the sums over the graph with the pairs' entries at zero."""
    users, items, zeroed = left_out(graph)
    rows = draw(1, NUM_USERS, DIM), draw(2, NUM_ITEMS, DIM)
    wanted = torch.cat([x[ids.unique()] for x, ids in zip(light_propagation(zeroed, *rows, 2), (users, items))])
    sampled = []
    for step in range(2000):
        blocks = blocks_without(graph, [2, 2], users, items, step)
        sampled.append(torch.cat(light_propagation(blocks, rows[0][blocks.users], rows[1][blocks.items], 2)))
    values = torch.stack(sampled)
    assert bool(((values.mean(0) - wanted).abs() <= 4 * values.std(0) / len(sampled) ** 0.5 + 1e-9).all())
