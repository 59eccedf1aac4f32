"""Who owns what: every node has one owner, on its part's host where a worker runs there."""

import itertools

import pytest
import torch
from promptmm.core.sides import ITEMS, USERS
from promptmm.graph_store.config import GraphConfig, SourceConfig
from promptmm.graph_store.dataset import open_dataset
from promptmm.graph_store.dataset_writer import write_dataset
from promptmm.graph_store.dgl.partition import partition
from promptmm.graph_store.node_numbers import NodeNumbers
from promptmm.graph_store.ownership import Owners, Piece, owners_of_part, pieces_of_parts
from promptmm.graph_store.sources.formats import load_catalog

CLUSTERS = {
    "one of each": (["a"], ["a"]),
    "more workers than parts": (["a"], ["a", "a", "a"]),
    "hosts without workers": (["a", "b", "c"], ["b"]),
    "a host without workers": (["a", "b", "c"], ["c", "a", "a"]),
    "a part a worker": (["a", "b"], ["a", "b"]),
    "workers without a part": (["a"], ["b", "a", "c"]),
    "no worker beside a part": (["a", "b", "c"], ["d", "e"]),
}
both = pytest.mark.parametrize(("part_nodes", "worker_nodes"), CLUSTERS.values(), ids=CLUSTERS)


def test_a_parts_nodes_belong_to_the_workers_on_its_host_in_equal_runs():
    pieces = pieces_of_parts([7, 4], ["a", "b"], ["a", "b", "a"])
    assert pieces == [Piece(0, 0, 3, 0), Piece(0, 3, 7, 2), Piece(1, 0, 4, 1)]


def test_parts_of_hosts_without_workers_go_round():
    assert [owners_of_part(part, ["x", "y", "z"], ["a", "b"]) for part in range(3)] == [[0], [1], [0]]


def test_more_workers_than_nodes_leave_some_without():
    assert [piece.rank for piece in pieces_of_parts([2], ["a"], ["a", "a", "a"])] == [1, 2]


@both
@pytest.mark.parametrize("sizes", [(5, 3, 8), (1, 1, 1), (100, 0, 17)])
def test_pieces_cover_every_node_once(part_nodes, worker_nodes, sizes):
    sizes = sizes[: len(part_nodes)]
    pieces = pieces_of_parts(sizes, part_nodes, worker_nodes)
    owned = list(itertools.chain.from_iterable(((piece.part, place) for place in range(piece.begin, piece.end)) for piece in pieces))
    assert owned == [(part, place) for part, size in enumerate(sizes) for place in range(size)]
    for piece in pieces:
        assert piece.rank in owners_of_part(piece.part, part_nodes, worker_nodes)
        assert worker_nodes[piece.rank] == part_nodes[piece.part] or part_nodes[piece.part] not in worker_nodes


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    url = str(tmp_path_factory.mktemp("owners") / "dataset")
    write_dataset(url, load_catalog(SourceConfig(synthetic_num_users=120, synthetic_num_items=70)), {})
    return open_dataset(url)


@both
def test_owners_find_what_they_own(dataset, tmp_path, part_nodes, worker_nodes):
    """A node's owner has it at the place that `find` says, with its degree."""
    partition(dataset, str(tmp_path / "graph"), GraphConfig(num_parts=len(part_nodes), method="hash"))
    owners = Owners(NodeNumbers(tmp_path / "graph"), part_nodes, worker_nodes)
    degrees = [torch.from_numpy(ids).bincount(minlength=count) for ids, count in zip(dataset.interactions("train"), (120, 70))]
    for side, count in ((USERS, dataset.num_users), (ITEMS, dataset.num_items)):
        everyone = torch.arange(count)
        ranks, places = owners.find(side, everyone)
        for rank in range(len(worker_nodes)):
            own = owners.own_ids(side, rank, tmp_path / "graph")
            assert torch.equal(own[places[ranks == rank]], everyone[ranks == rank])
            assert own.numel() == int((ranks == rank).sum())
            assert torch.equal(owners.own_degrees(side, rank, tmp_path / "graph").long(), degrees[side][own])
        parts, _ = owners.numbers.locate(side, everyone)
        for part, node in enumerate(part_nodes):
            if node in worker_nodes:  # owned where it lies
                assert {worker_nodes[r] for r in ranks[parts == part].tolist()} == {node}


def test_places_count_the_nodes_of_a_side_in_the_order_of_the_parts(dataset, tmp_path):
    partition(dataset, str(tmp_path / "graph"), GraphConfig(num_parts=3, method="hash"))
    numbers = NodeNumbers(tmp_path / "graph")
    for side, count in ((USERS, dataset.num_users), (ITEMS, dataset.num_items)):
        places = numbers.places(side, torch.arange(count))
        parts, local = numbers.locate(side, torch.arange(count))
        assert sorted(places.tolist()) == list(range(count))
        for part in range(3):
            assert numbers.size(side, part) == int((parts == part).sum())
            first = torch.tensor(numbers.size(USERS, part) if side == ITEMS else 0)
            assert torch.equal(places[parts == part], numbers.first_place(side, part) + local[parts == part] - first)
