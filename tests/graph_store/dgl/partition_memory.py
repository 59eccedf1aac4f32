"""Partitions a generated catalog in this process and prints its peak of anonymous memory: FOLDER METHOD NUM_PARTS NUM_USERS."""

import json
import sys
from pathlib import Path

import memory
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from promptmm.graph_store import adjacency, assignment, coarsening, loads, part_edges, partition_memory
from promptmm.graph_store.config import GraphConfig
from promptmm.graph_store.dataset import Dataset, ModalityInfo
from promptmm.graph_store.dgl import partition as dgl_partition

EDGES_A_USER, DIM, BUFFER = 20, 64, 1 << 16


def dataset(folder: Path, num_nodes: int) -> Dataset:
    """Users with 20 items each, by a power law; one modality that a tenth of the items lack."""
    random = np.random.default_rng(0)
    users = np.repeat(np.arange(num_nodes), EDGES_A_USER)
    keys = np.unique(users * num_nodes + (random.random(len(users)) ** 2 * num_nodes).astype(np.int64))
    (folder / "interactions").mkdir(parents=True)
    pairs = pa.table({name: ids.astype(np.int32) for name, ids in zip(("user", "item"), np.divmod(keys, num_nodes))})
    pq.write_table(pairs, folder / "interactions" / "train.parquet", row_group_size=BUFFER)
    (folder / "features" / "text").mkdir(parents=True)
    rows = random.standard_normal((num_nodes, DIM), dtype=np.float32)
    missing = random.random(num_nodes) < 0.1
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), DIM, mask=pa.array(missing))
    pq.write_table(pa.table({"vector": vectors}), folder / "features" / "text" / "part-00000.parquet", row_group_size=8192)
    manifest = {"num_interactions": {"train": len(keys)}}
    return Dataset(folder, manifest, "", num_nodes, num_nodes, {"text": ModalityInfo(DIM, "float32", int(missing.sum()))})


def main(folder: Path, method: str, num_parts: int, num_nodes: int) -> None:
    made = dataset(folder / "dataset", num_nodes)
    pa.default_memory_pool().release_unused()
    for name, size in (("READ_PAIRS", BUFFER), ("RUN_EDGES", BUFFER), ("SORT_PAIRS", 4 * BUFFER)):
        for module in (adjacency, assignment, coarsening, loads, part_edges, partition_memory, dgl_partition):
            if hasattr(module, name):
                setattr(module, name, size)
    config = GraphConfig(num_parts=num_parts, method=method, metis_edges=100_000)
    # The first call loads the libraries that are loaded when they are needed.
    dgl_partition.partition(dataset(folder / "small", 1000), str(folder / "small" / "graph"), config)
    peak = memory.Peak(lambda: memory.resident()["RssAnon"], 0.002)
    dgl_partition.partition(made, str(folder / "graph"), config)
    facts = {"edges": made.manifest["num_interactions"]["train"], "peak": peak.highest * 2**20, "grown": (peak.highest - peak.base) * 2**20}
    print(json.dumps({**facts, "bound": partition_memory.memory_of(made, config)}))


main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
