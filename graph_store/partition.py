"""`partition`: dataset/ -> graph/, the train graph in DGL's partition format plus each part's feature rows as flat files.

Layout of graph/ (all integers little-endian, indices are the dataset's):
manifest.json                        counts, modalities, and of every part: users, items, edges (its own nodes' in-edges), feature bytes
                                     (of its items' present rows), and the share of its edges whose other end another part owns
promptmm.json, part<P>/*.dgl         as DGL reads them. A part holds its users, then its items, each ascending by dataset index, then
                                     the neighbours that other parts own. Its edges are the in-edges of its own nodes in CSC order, a
                                     row's neighbours ascending by dataset index: what is drawn from a row does not depend on the cut.
                                     Node data: `degree` and `orig`, the dataset index. Edge ids in the CSC are implicit.
part<P>/orig.i64                     dataset index of every node of the part, other parts' neighbours included
part<P>/degrees.i32                  train interactions of every node that the part owns
part<P>/weights.f32                  Ã's entry of every edge, in CSC order
part<P>/features/<modality>.rows     feature rows, row-major, in the order of the part's own items: float16 or float32 as in the dataset,
                                     or int8 (`graph.features`) with a float32 scale for each row in <modality>.scale (feature_rows.py);
                                     <modality>.present one byte a row
nodes/{user,item}.i64                DGL's (homogeneous) node id of every dataset index
examples/pointers.i64, items.i32     train items of every user, by dataset index: what examples and negatives are drawn from

Who owns what: assignment.py. Memory: `partition_memory`; time is linear in edges, nodes and feature bytes. Interactions and features are
streamed; a part's edges are filled, some at a time, into scratch files that are mapped to memory (and count as page cache), and DGL
writes them in one piece, with a copy of one array at a time. Measured on one core: 10^8 train edges, 10^7 users and as many items, four
parts by hash: 87 s, 2.2 GiB (bound 2.6 GiB; 4.4 GiB resident with mapped pages); 2·10^7 edges, 2·10^6 nodes: 15 s by hash, 41 s by metis.
"""

import json
import os
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..core.errors import InputError
from ..core.storage import write_artifact
from .adjacency import ITEM, KINDS, OTHER, READ_PAIRS, SCRATCH, SORT_PAIRS, USER, Rows, runs, write_rows
from .assignment import MAX_CLUSTERS, RUN_EDGES, assign
from .catalog import feature_chunk_rows
from .config import GraphConfig
from .dataset import Dataset
from .external import scratch
from .feature_rows import present_bytes, write_features

GRAPH_NAME = "promptmm"
EDGE, BACK_EDGE = "interacts", "interacted_by"  # a user's in-edges are of type BACK_EDGE, an item's of type EDGE
MIB = 2**20
# Measured (tests/graph_store/test_partition.py): bytes of anonymous memory
PROCESS_BYTES = 440 * MIB  # interpreter and libraries
NODE_BYTES = 80  # pointers, owners, numbers and scales of all nodes, and DGL's data of one part's
PAIR_BYTES = 100  # of pairs and edges that are in work at a time
METIS_BYTES, METIS_VERTEX_BYTES = 200, 400
LARGEST_SHARE = {"hash": 1.25, "metis": 1.25, "range": 2.5}  # of a part in the mean part's edges, but for one very busy user or item


def partition_memory(num_users: int, num_items: int, num_edges: int, largest_row_bytes: int, config: GraphConfig) -> dict[str, int]:
    """Upper bound of the memory that `partition` takes, in bytes; pages of mapped files, which the system takes back, are not counted.

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
    """`partition_memory` of a dataset, from its manifest."""
    largest = max((m.dim * np.dtype(m.dtype).itemsize for m in dataset.modalities.values()), default=0)
    return partition_memory(dataset.num_users, dataset.num_items, dataset.manifest["num_interactions"]["train"], largest, config)


def describe_memory(memory: dict[str, int]) -> str:
    """One line about `partition_memory`."""
    phase, size = max(((name, memory[name]) for name in memory if name not in ("process", "nodes", "total")), key=lambda x: x[1])
    return (
        f"memory: at most {memory['total'] / MIB:,.0f} MiB (process {memory['process'] / MIB:,.0f}, nodes {memory['nodes'] / MIB:,.0f}, "
        f"{phase} {size / MIB:,.0f})"
    )


def describe_part(facts: dict) -> str:
    """One line about a part's entry in the manifest."""
    return (
        f"{facts['users']:,} users, {facts['items']:,} items, {facts['edges']:,} edges ({facts['cut_edges']:.1%} cut), "
        f"{facts['feature_bytes'] / MIB:,.1f} MiB of features"
    )


def partition(dataset: Dataset, url: str, config: GraphConfig) -> dict:
    """Cuts the train graph (both directions, with degrees) into parts and writes the artifact of kind "graph".

    Args:
        dataset: The canonical dataset.
        url: Where graph/ goes.
        config: Number of parts, method and feature storage.

    Returns:
        The manifest's metadata.

    Raises:
        InputError: there are more parts than users or items.
    """
    if config.num_parts > min(dataset.num_users, dataset.num_items):
        raise InputError(
            f"graph.num_parts={config.num_parts} is more than the catalog's {dataset.num_users} users or {dataset.num_items} items"
        )
    metadata: dict = {
        "dataset": dataset.digest,
        "num_parts": config.num_parts,
        "method": config.method if config.num_parts > 1 else None,
        "num_users": dataset.num_users,
        "num_items": dataset.num_items,
    }
    with write_artifact(url, "graph", metadata) as folder:
        rows = write_rows(dataset, folder)
        feature_bytes = present_bytes(dataset, config.features)
        parts = assign(rows, feature_bytes, config)
        layout = Layout.of(parts, config.num_parts, folder)
        edge_starts = _edge_starts(layout, rows)
        scale = {kind: _scales(rows[kind]) for kind in KINDS}
        metadata["parts"] = []
        for part in range(config.num_parts):
            num_cut = _write_part(folder, part, layout, rows, scale, int(edge_starts[2 * part]))
            num_edges = int(edge_starts[2 * part + 2] - edge_starts[2 * part])
            own = {f"{kind}s": len(layout.own[kind][part]) for kind in KINDS}
            held = int(feature_bytes[layout.own[ITEM][part]].sum())
            metadata["parts"].append({**own, "edges": num_edges, "feature_bytes": held, "cut_edges": num_cut / max(1, num_edges)})
        (folder / SCRATCH).unlink()
        _write_config(folder, layout, edge_starts, config)
        ends = np.cumsum([len(ids) for ids in layout.own[ITEM]])
        metadata["part_items"] = [[int(last) - len(ids), int(last)] for last, ids in zip(ends, layout.own[ITEM])]
        metadata["modalities"] = {m: write_features(dataset, folder, m, parts[ITEM], config) for m in dataset.modalities}
    return metadata


@dataclass(frozen=True)
class Layout:
    """Where every node is, and DGL's numbering of all nodes.

    Attributes:
        own: By kind and part, the dataset indices of its nodes, ascending.
        starts: DGL's first node id of part 0's users, its items, part 1's users, ..., [2 · num_parts + 1].
        new: By kind, DGL's node id of every dataset index, int64, memory-mapped: graph/nodes/.
    """

    own: dict[str, list[np.ndarray]]
    starts: np.ndarray
    new: dict[str, np.ndarray]

    @staticmethod
    def of(parts: dict[str, np.ndarray], count: int, folder: Path) -> "Layout":
        """From the part of every node, int16; writes nodes/."""
        (folder / "nodes").mkdir()
        ends = {kind: np.cumsum(np.bincount(p, minlength=count))[:-1] for kind, p in parts.items()}
        own = {kind: np.split(np.argsort(p, kind="stable"), ends[kind]) for kind, p in parts.items()}
        sizes = np.array([[len(own[kind][part]) for kind in KINDS] for part in range(count)])
        starts = np.concatenate([[0], np.cumsum(sizes.ravel())])
        new: dict[str, np.ndarray] = {
            kind: np.memmap(folder / "nodes" / f"{kind}.i64", "<i8", "w+", shape=p.shape) for kind, p in parts.items()
        }
        for column, kind in enumerate(KINDS):
            for part, ids in enumerate(own[kind]):
                new[kind][ids] = np.arange(len(ids)) + starts[2 * part + column]
        return Layout(own, starts, new)


def _scales(rows: Rows) -> np.ndarray:
    """1 / sqrt(degree), float64 [n]."""
    scale = np.diff(rows.pointers).astype(np.float64)
    np.maximum(scale, 1, out=scale)
    np.sqrt(scale, out=scale)
    return np.divide(1, scale, out=scale)


@dataclass(frozen=True)
class PartEdges:
    """In-edges of a part's own nodes, its users' and then its items', in CSC order.

    Attributes:
        degrees: By kind, int64 [own nodes].
        columns: int64 [edges], local numbers: own users, own items, then the other parts' items of own users, the users of own items.
        halo: By kind of the own nodes, dataset indices of their neighbours that other parts own, ascending.
        num_cut: Edges from those.
    """

    degrees: dict[str, np.ndarray]
    columns: np.ndarray
    halo: dict[str, np.ndarray]
    num_cut: int


def _write_part(folder: Path, part: int, layout: Layout, rows: dict[str, Rows], scale: dict[str, np.ndarray], edge_start: int) -> int:
    """DGL's files of one part, and what the store keeps beside them; returns the number of edges from other parts' nodes."""
    os.environ.setdefault("DGLBACKEND", "pytorch")
    import dgl
    from dgl.data.utils import save_tensors

    target = folder / f"part{part}"
    target.mkdir()
    own = {kind: layout.own[kind][part] for kind in KINDS}
    edges = _write_edges(target, part, layout, rows, scale)
    nodes = [*own.items(), *((OTHER[kind], halo) for kind, halo in edges.halo.items())]
    num_own, num_nodes, num_edges = sum(map(len, own.values())), sum(len(ids) for _, ids in nodes), len(edges.columns)
    pointers = np.full(num_nodes + 1, num_edges)
    pointers[0] = 0
    np.cumsum(np.concatenate(list(edges.degrees.values())), out=pointers[1 : num_own + 1])
    csc = ("csc", tuple(map(torch.from_numpy, (pointers, edges.columns, np.zeros(0, np.int64)))))  # no ids: an edge's id is its place
    graph = dgl.graph(csc, num_nodes=num_nodes)
    graph.ndata[dgl.NID] = torch.from_numpy(np.concatenate([layout.new[kind][ids] for kind, ids in nodes]))
    kinds = np.array([KINDS.index(kind) for kind, _ in nodes], np.int16)
    graph.ndata[dgl.NTYPE] = torch.from_numpy(np.repeat(kinds, [len(ids) for _, ids in nodes]))
    graph.ndata["inner_node"] = torch.from_numpy((np.arange(num_nodes, dtype=np.int32) < num_own).view(np.uint8))
    ids, is_inner, edge_types = (scratch(dtype, num_edges, folder=folder) for dtype in (np.int64, np.uint8, np.int32))
    for start in range(0, num_edges, RUN_EDGES):
        ids[start : start + RUN_EDGES] = np.arange(edge_start + start, edge_start + min(start + RUN_EDGES, num_edges))
    is_inner[:] = 1
    edge_types[int(edges.degrees[USER].sum()) :] = 1
    for name, values in ((dgl.EID, ids), (dgl.ETYPE, edge_types), ("inner_edge", is_inner)):
        graph.edata[name] = torch.from_numpy(values)
    dgl.save_graphs(str(target / "graph.dgl"), [graph], formats=["csc"])
    data = {f"{kind}/orig": torch.from_numpy(ids) for kind, ids in own.items()}
    data |= {f"{kind}/degree": torch.from_numpy(found) for kind, found in edges.degrees.items()}
    save_tensors(str(target / "node_feat.dgl"), data)
    save_tensors(str(target / "edge_feat.dgl"), {})
    _write_file(target / "orig.i64", "<i8", [ids for _, ids in nodes])
    _write_file(target / "degrees.i32", "<i4", list(edges.degrees.values()))
    return edges.num_cut


def _write_edges(target: Path, part: int, layout: Layout, rows: dict[str, Rows], scale: dict[str, np.ndarray]) -> PartEdges:
    """Gathers a part's edges and writes their weights."""
    own = {kind: layout.own[kind][part] for kind in KINDS}
    first_number = dict(zip(KINDS, (layout.starts[2 * part : 2 * part + 2] - layout.starts[2 * part]).tolist()))
    num_own = num_nodes = sum(map(len, own.values()))
    degrees = {kind: rows[kind].degrees(ids) for kind, ids in own.items()}
    columns = scratch(np.int64, sum(int(found.sum()) for found in degrees.values()), folder=target)
    halos, num_cut, begin = {}, 0, 0
    with open(target / "weights.f32", "wb") as weights:
        for kind, other in OTHER.items():
            pointers = np.concatenate([[0], np.cumsum(degrees[kind])])
            mine, seen = columns[begin : begin + int(pointers[-1])], np.zeros(len(rows[other]), bool)
            for start, end in runs(pointers, RUN_EDGES, RUN_EDGES):
                here, found = slice(pointers[start], pointers[end]), rows[kind].gather(own[kind][start:end])
                mine[here], seen[found] = found, True
                values = np.repeat(scale[kind][own[kind][start:end]], degrees[kind][start:end]) * scale[other][found]
                weights.write(values.astype("<f4").data)
            seen[own[other]] = False
            halos[kind] = np.flatnonzero(seen)
            number = np.empty(len(seen), np.int32)
            number[own[other]] = np.arange(first_number[other], first_number[other] + len(own[other]))
            number[halos[kind]] = np.arange(num_nodes, num_nodes + len(halos[kind]))
            for start in range(0, len(mine), RUN_EDGES):
                numbers = number[mine[start : start + RUN_EDGES]]
                num_cut += int((numbers >= num_own).sum())
                mine[start : start + RUN_EDGES] = numbers
            num_nodes += len(halos[kind])
            begin += len(mine)
    return PartEdges(degrees, columns, halos, num_cut)


def _write_file(path: Path, dtype: str, pieces: list[np.ndarray]) -> None:
    with open(path, "wb") as out:
        for piece in pieces:
            out.write(piece.astype(dtype, copy=False).data)


def _edge_starts(layout: Layout, rows: dict[str, Rows]) -> np.ndarray:
    """First edge id of part 0's users, its items, part 1's users, ..., [2 · num_parts + 1]."""
    num_parts = len(layout.own[USER])
    counts = [int(rows[kind].degrees(layout.own[kind][part]).sum()) for part in range(num_parts) for kind in KINDS]
    return np.concatenate([[0], np.cumsum(counts)])


def _write_config(folder: Path, layout: Layout, edge_starts: np.ndarray, config: GraphConfig) -> None:
    """promptmm.json, which DGL's servers and clients read."""
    edge_types = [f"{ITEM}:{BACK_EDGE}:{USER}", f"{USER}:{EDGE}:{ITEM}"]

    def ranges(starts: np.ndarray, column: int) -> list[list[int]]:
        return [[int(starts[2 * part + column]), int(starts[2 * part + column + 1])] for part in range(config.num_parts)]

    facts: dict = {
        "graph_name": GRAPH_NAME,
        "num_nodes": int(layout.starts[-1]),
        "num_edges": int(edge_starts[-1]),
        "part_method": config.method,
        "num_parts": config.num_parts,
        "halo_hops": 1,
        "node_map": {kind: ranges(layout.starts, column) for column, kind in enumerate(KINDS)},
        "edge_map": {kind: ranges(edge_starts, column) for column, kind in enumerate(edge_types)},
        "ntypes": {kind: number for number, kind in enumerate(KINDS)},
        "etypes": {kind: number for number, kind in enumerate(edge_types)},
    }
    for part in range(config.num_parts):
        names = {"node_feats": "node_feat.dgl", "edge_feats": "edge_feat.dgl", "part_graph": "graph.dgl"}
        facts[f"part-{part}"] = {key: f"part{part}/{name}" for key, name in names.items()}
    (folder / f"{GRAPH_NAME}.json").write_text(json.dumps(facts, indent=1))


def files_of(parts: Collection[int]) -> Callable[[str], bool]:
    """Which files of graph/ a host needs that serves, or owns rows of, some parts: theirs, and what belongs to no part."""

    def wanted(name: str) -> bool:
        found = re.match(r"part(\d+)/", name)
        return found is None or int(found[1]) in parts

    return wanted
