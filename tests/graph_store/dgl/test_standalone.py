"""DGL's standalone store: several graphs in one process, one after the other and at a time."""

import torch
from promptmm.core.sides import ITEMS, SIDES, USERS
from promptmm.graph_store.config import GraphConfig, SourceConfig
from promptmm.graph_store.dataset import open_dataset
from promptmm.graph_store.dataset_writer import write_dataset
from promptmm.graph_store.dgl.partition import partition
from promptmm.graph_store.dgl.standalone import connect_alone
from promptmm.graph_store.sources.formats import load_catalog


def make_graph(folder, num_users: int) -> str:
    """A graph of one part; returns its URL."""
    source = SourceConfig(synthetic_num_users=num_users, synthetic_num_items=40, synthetic_interactions_per_user=8)
    write_dataset(str(folder / "dataset"), load_catalog(source), {})
    partition(open_dataset(str(folder / "dataset")), str(folder / "graph"), GraphConfig())
    return str(folder / "graph")


def test_graphs_of_one_process_do_not_meet(tmp_path):
    """Tables of the same name and other sizes, of graphs that are open together."""
    connections = []
    for num_users in (30, 50):
        connection = connect_alone(make_graph(tmp_path / str(num_users), num_users))
        assert connection.num_users == num_users
        tables = [connection.table(side, f"rows_{side}", 3) for side in SIDES]
        connections.append((num_users, connection, tables))
    for value, (num_users, _, tables) in enumerate(connections, 1):
        tables[USERS].write(torch.arange(num_users), torch.full((num_users, 3), float(value)))
    for value, (num_users, connection, tables) in enumerate(connections, 1):
        assert torch.equal(tables[USERS].pull(torch.arange(num_users)), torch.full((num_users, 3), float(value)))
        assert not tables[ITEMS].pull(torch.arange(40)).any()
        of_users, _ = connection.neighbours.neighbours(torch.arange(num_users), torch.arange(0))
        assert torch.equal(of_users.pointers, connection.train_rows().pointers)
