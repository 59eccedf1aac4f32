"""Baselines against their equations, and LightGCN step by step against torch_geometric's."""

import pytest
import torch
from promptmm.core.config import TeacherConfig
from promptmm.core.graph import BipartiteGraph
from promptmm.core.item_graph import ItemGraph, nearest_neighbours
from promptmm.core.teacher import Triples, build_whole_teacher

NUM_USERS, NUM_ITEMS, DIMS = 30, 24, {"visual": 10, "text": 7}


def make_graph(seed=0):
    taken = torch.rand(NUM_USERS, NUM_ITEMS, generator=torch.Generator().manual_seed(seed)) < 0.2
    return BipartiteGraph.from_pairs(*taken.nonzero().unbind(1), NUM_USERS, NUM_ITEMS)


def make_features(missing=()):
    generator = torch.Generator().manual_seed(5)
    features = {m: torch.randn(NUM_ITEMS, dim, generator=generator) for m, dim in DIMS.items()}
    for x in features.values():
        x[list(missing)] = 0
    return features


def build(kind, **settings):
    config = TeacherConfig(kind=kind, **{"dim": 6, **settings})
    return build_whole_teacher(config, NUM_USERS, NUM_ITEMS, DIMS if config.reads_features else {}, seed=3)


def moved(model, seed=1):
    """The model with weights away from their start, so that no term is zero."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
    return model


def link(model, features):
    """The model with its item graphs."""

    def search(rows):
        return ItemGraph.from_neighbours(*nearest_neighbours(rows, model.config.item_neighbours))

    with torch.no_grad():
        model.link(search, model.reduce(features), lambda: features)
    return model


def batches(graph, count, size):
    generator = torch.Generator().manual_seed(2)
    for _ in range(count):
        edges = torch.randint(graph.users.columns.numel(), (size,), generator=generator)
        negatives = torch.randint(NUM_ITEMS, (size,), generator=generator)
        yield graph.users.rows[edges], graph.users.columns[edges], negatives


@pytest.mark.parametrize("layers", [0, 3])
def test_lightgcn_trains_as_torch_geometric_does(layers):
    """Loss for loss over 25 steps of Adam; 0 layers is MF."""
    from torch_geometric.nn.models import LightGCN

    graph, l2 = make_graph(), 1e-2
    ours = build("lightgcn" if layers else "mf", layers=layers, l2=l2)
    theirs = LightGCN(NUM_USERS + NUM_ITEMS, 6, layers)
    with torch.no_grad():
        theirs.embedding.weight.copy_(torch.cat([ours.collaborative.ids.user, ours.collaborative.ids.item]))
    pairs = torch.stack([graph.users.rows, graph.users.columns + NUM_USERS])
    edges = torch.cat([pairs, pairs.flip(0)], 1)
    optimizers = [torch.optim.Adam(model.parameters(), lr=0.05) for model in (ours, theirs)]
    first = None
    for users, positives, negatives in batches(graph, 25, 64):
        terms = ours.loss(ours.vectors(graph, {}), Triples(users, positives, negatives, 64))
        nodes = torch.cat([users, positives + NUM_USERS, negatives + NUM_USERS])
        rank = theirs(edges, torch.stack([users.repeat(2), nodes[64:]]))
        expected = theirs.recommendation_loss(rank[:64], rank[64:], nodes, lambda_reg=l2 / 2)
        loss = terms["bpr"] + terms["l2"]
        assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
        for optimizer, value in zip(optimizers, (loss, expected)):
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        first = first or loss.item()
    assert loss.item() < 0.8 * first


def test_vbpr_is_its_equation():
    features = make_features(missing=[4])
    model = moved(build("vbpr"))
    with torch.no_grad():
        vectors = model.vectors(make_graph(), model.reduce(features))
        tables, dim = model.collaborative.ids, 6
        scores = tables.user @ tables.item.T + model.bias[:, 0]
        for at, (m, x) in enumerate(features.items()):
            tastes = model.tastes[:, at * dim : (at + 1) * dim]
            scores = scores + tastes @ (x @ model.maps[f"of_{m}"].weight.T).T + (x @ model.bias_maps[f"of_{m}"].weight[0])
            torch.testing.assert_close(vectors.modal_user[m], tastes)
            torch.testing.assert_close(vectors.modal_item[m], x @ model.maps[f"of_{m}"].weight.T)
    torch.testing.assert_close(vectors.user @ vectors.item.T, scores)
    assert vectors.item.shape == (NUM_ITEMS, 6 * 3 + 1)


def dense_item_graph(rows, k):
    """D^-1/2 S D^-1/2 by LATTICE's definition, an item being none of its own neighbours; the neighbours are those of `lists`."""
    unit = torch.nn.functional.normalize(rows, dim=1)
    similarities = unit @ unit.T
    masked = similarities.detach().clone().fill_diagonal_(-torch.inf)
    present = rows.detach().any(1)
    masked[:, ~present] = -torch.inf
    lists = masked.topk(k, dim=1).indices
    kept = torch.zeros_like(masked).scatter_(1, lists, 1.0) * present[:, None] * (masked > 0)
    adjacency = torch.where(kept > 0, similarities, 0.0)
    degrees = adjacency.sum(1)
    scale = torch.where(degrees > 0, degrees.clamp(min=1e-9).rsqrt(), 0.0)
    return scale[:, None] * adjacency * scale


@pytest.mark.parametrize("blend", [0.0, 0.4, 1.0])
def test_lattice_is_its_equations(blend):
    features, graph = make_features(missing=[4, 9]), make_graph()
    model = link(moved(build("lattice", item_graph_blend=blend, item_layers=2, item_neighbours=3)), features)
    z = model.reduce(features)
    assert not z["visual"][[4, 9]].any()
    vectors = model.vectors(graph, z)
    shares, h = torch.softmax(model.modality_weights, 0), model.collaborative.ids.item
    adjacency = sum(
        share * (blend * dense_item_graph(features[m], 3) + (1 - blend) * dense_item_graph(z[m], 3)) for share, m in zip(shares, DIMS)
    )
    users, items = model.collaborative.vectors(graph)
    expected = items + torch.nn.functional.normalize(adjacency @ (adjacency @ h), dim=1)
    torch.testing.assert_close(vectors.item, expected, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(vectors.user, users)
    torch.testing.assert_close(vectors.modal_user["text"], graph.to_users(z["text"]))
    weight = torch.randn(NUM_ITEMS, 6, generator=torch.Generator().manual_seed(8))
    parameters = [p for p in model.parameters() if p is not model.collaborative.ids.user]
    found = torch.autograd.grad((vectors.item * weight).sum(), parameters, allow_unused=True, retain_graph=True)
    reference = torch.autograd.grad((expected * weight).sum(), parameters, allow_unused=True)
    for mine, theirs in zip(found, reference):
        if mine is not None and theirs is not None:
            torch.testing.assert_close(mine, theirs, atol=2e-5, rtol=1e-4)
        else:  # what is learnt on features decides nothing at λ = 1
            assert mine is None
            assert blend == 1
            assert theirs is None or not theirs.any()


def test_lattice_looks_for_neighbours_only_where_it_is_told_to():
    features = make_features()
    model = link(build("lattice", item_graph_blend=0.5, item_neighbours=3), features)
    lists = {m: graph.neighbours.columns.clone() for m, graph in model.learnt.items()}
    moved(model)
    model.vectors(make_graph(), model.reduce(features))
    assert all(torch.equal(model.learnt[m].neighbours.columns, columns) for m, columns in lists.items())
    initial = model.initial["visual"]
    link(model, features)
    assert not torch.equal(model.learnt["visual"].neighbours.columns, lists["visual"])
    assert model.initial["visual"] is initial


@pytest.mark.parametrize("kind", ["mf", "lightgcn", "vbpr", "lattice"])
def test_shards_of_a_batch_add_up_to_its_loss(kind):
    features, graph = make_features(), make_graph()
    model = link(moved(build(kind)), features)
    vectors = model.vectors(graph, model.reduce(features))
    users, positives, negatives = next(batches(graph, 1, 16))
    weights = torch.rand(16)
    whole = model.loss(vectors, Triples(users, positives, negatives, 16, weights))
    shards = [Triples(users[s], positives[s], negatives[s], 16 / 2, weights[s]) for s in (slice(0, 7), slice(7, 16))]
    parts = [model.loss(vectors, shard) for shard in shards]
    assert ("feature_decay" in whole) == (kind in ("vbpr", "lattice"))
    for name, value in whole.items():
        assert sum(part[name].item() for part in parts) / 2 == pytest.approx(value.item(), rel=1e-5)


def test_the_start_depends_on_the_seed_alone():
    torch.manual_seed(1)
    one = build("lattice")
    torch.manual_seed(2)
    two = build("lattice")
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters()))
