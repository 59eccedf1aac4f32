"""How much memory `partition` takes: a bound that is known before it starts."""

import numpy as np

from .adjacency import READ_PAIRS, SORT_PAIRS
from .catalog import feature_chunk_rows
from .coarsening import MAX_CLUSTERS
from .config import GraphConfig
from .dataset import Dataset
from .loads import RUN_EDGES

MIB = 2**20
# Measured (tests/graph_store/dgl/test_partition.py): bytes of anonymous memory
PROCESS_BYTES = 440 * MIB  # interpreter and libraries
NODE_BYTES = 80  # pointers, owners, numbers and scales of all nodes, and DGL's data of one part's
PAIR_BYTES = 100  # of pairs and edges that are in work at a time
METIS_BYTES, METIS_VERTEX_BYTES = 200, 400
LARGEST_SHARE = {"hash": 1.25, "metis": 1.25, "range": 2.5}  # of a part in the mean part's edges, but for one very busy user or item


def partition_memory(num_users: int, num_items: int, num_edges: int, largest_row_bytes: int, config: GraphConfig) -> dict[str, int]:
    """Bounds the memory that `partition` takes, in bytes; pages of mapped files, which the system takes back, are not counted.

    Args:
        num_users, num_items: The catalog.
        num_edges: Train interactions.
        largest_row_bytes: Bytes of a feature row of the widest modality in the dataset, 0 without any.
        config: How the graph is cut.

    Returns:
        What is held throughout (`process`, `nodes`), the phases, of which one runs at a time (`sorting`, `metis`, `part`, `features`), and
        `total`, the bound.
    """
    nodes, work = num_users + num_items, PAIR_BYTES * max(READ_PAIRS, RUN_EDGES)
    parts = {"process": PROCESS_BYTES, "nodes": NODE_BYTES * nodes}
    share = min(1.0, LARGEST_SHARE[config.method] / config.num_parts)
    largest = min(2 * num_edges, int(2 * num_edges * share) + nodes)
    phases = {
        "sorting": work + 8 * min(num_edges, SORT_PAIRS + num_users),
        "part": work + 8 * largest,  # DGL's copy of one array
        "features": 8 * feature_chunk_rows(largest_row_bytes) * largest_row_bytes,
    }
    if config.method == "metis" and config.num_parts > 1:
        edges = min(num_edges, config.metis_edges)
        vertices = nodes if max(num_edges, nodes) <= config.metis_edges else MAX_CLUSTERS
        phases["metis"] = work + 4 * min(MAX_CLUSTERS, num_items) ** 2 + METIS_BYTES * edges + METIS_VERTEX_BYTES * vertices
    return {**parts, **phases, "total": sum(parts.values()) + max(phases.values())}


def memory_of(dataset: Dataset, config: GraphConfig) -> dict[str, int]:
    """Bounds the memory that `partition` takes for a dataset, in bytes, as `partition_memory` does, from its manifest."""
    largest = max((m.dim * np.dtype(m.dtype).itemsize for m in dataset.modalities.values()), default=0)
    return partition_memory(dataset.num_users, dataset.num_items, dataset.manifest["num_interactions"]["train"], largest, config)


def describe_memory(memory: dict[str, int]) -> str:
    """Describes what `partition_memory` returns in one line, in MiB."""
    phase, size = max(((name, memory[name]) for name in memory if name not in ("process", "nodes", "total")), key=lambda x: x[1])
    return (
        f"memory: at most {memory['total'] / MIB:,.0f} MiB (process {memory['process'] / MIB:,.0f}, nodes {memory['nodes'] / MIB:,.0f}, "
        f"{phase} {size / MIB:,.0f})"
    )
