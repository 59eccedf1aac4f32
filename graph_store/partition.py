"""`partition`: dataset/ -> graph/, the train graph in DGL's partition format plus each part's feature rows as flat files.

Layout of graph/ (all integers little-endian, indices are the dataset's):
promptmm.json, part<P>/*.dgl         as DGL reads them. A part holds its users, then its items, each ascending by dataset index, then
                                     the neighbours that other parts own. Its edges are the in-edges of its own nodes in CSC order, a
                                     row's neighbours ascending by dataset index: what is drawn from a row does not depend on the cut.
                                     Node data: `degree` and `orig`, the dataset index.
part<P>/orig.i64                     dataset index of every node of the part, other parts' neighbours included
part<P>/weights.f32                  Ã's entry of every edge, in CSC order
part<P>/features/<modality>.rows     feature rows, row-major, in the order of the part's own items; <modality>.present one byte a row
nodes/{user,item}.i64                DGL's (homogeneous) node id of every dataset index
examples/pointers.i64, items.i32     train items of every user, by dataset index: what examples and negatives are drawn from

Memory: some arrays with an entry for every node, one part's edges (DGL writes a part in one piece), and `SORT_PAIRS` pairs at a time;
interactions and features are streamed.
"""

import contextlib
import json
import os
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from ..core.errors import InputError
from ..core.random import random_below
from ..core.storage import write_artifact
from .config import GraphConfig
from .dataset import Dataset

GRAPH_NAME = "promptmm"
USER, ITEM, EDGE, BACK_EDGE = "user", "item", "interacts", "interacted_by"
KINDS = (USER, ITEM)  # in the order of DGL's type ids; a user's in-edges are of type BACK_EDGE, an item's of type EDGE
SORT_PAIRS = 1 << 24
SCRATCH = ".users-by-item.i32"


def partition(dataset: Dataset, url: str, config: GraphConfig) -> dict:
    """Cuts the train graph (both directions, with degrees) into parts and writes the artifact of kind "graph".

    Args:
        dataset: The canonical dataset.
        url: Where graph/ goes.
        config: Number of parts and method.

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
        "modalities": {m: {"dim": info.dim, "dtype": info.dtype} for m, info in dataset.modalities.items()},
    }
    with write_artifact(url, "graph", metadata) as folder:
        rows = _write_examples(dataset, folder)
        parts = _assign(dataset, rows, config)
        layout = Layout.of(parts, config.num_parts)
        layout.write(folder)
        edge_starts = _edge_starts(layout, rows)
        for part in range(config.num_parts):
            _write_part(folder, part, layout, rows, int(edge_starts[2 * part]))
        (folder / SCRATCH).unlink()
        _write_config(folder, layout, edge_starts, config)
        ends = np.cumsum([len(ids) for ids in layout.own[ITEM]])
        metadata["part_items"] = [[int(last) - len(ids), int(last)] for last, ids in zip(ends, layout.own[ITEM])]
        for modality in dataset.modalities:
            _write_features(dataset, folder, modality, parts[ITEM], config.num_parts)
    return metadata


@dataclass
class Rows:
    """Neighbours of every node of one kind by dataset index, on disk.

    Attributes:
        pointers: int64 [n + 1].
        columns: Memory-mapped int32 [num_edges], ascending within a row.
    """

    pointers: np.ndarray
    columns: np.ndarray

    @property
    def degrees(self) -> np.ndarray:
        return np.diff(self.pointers)


def _pairs(dataset: Dataset) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Train pairs in (user, item) order, a row group at a time."""
    with pq.ParquetFile(dataset.folder / "interactions" / "train.parquet") as file:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            yield table["user"].to_numpy(), table["item"].to_numpy()


def _write_examples(dataset: Dataset, folder: Path) -> dict[str, Rows]:
    """examples/, and the same pairs by item in a scratch file: an external sort in buckets of items."""
    (folder / "examples").mkdir()
    degrees = {USER: np.zeros(dataset.num_users, np.int64), ITEM: np.zeros(dataset.num_items, np.int64)}
    with open(folder / "examples" / "items.i32", "wb") as out:
        for users, items in _pairs(dataset):
            degrees[USER] += np.bincount(users, minlength=dataset.num_users)
            degrees[ITEM] += np.bincount(items, minlength=dataset.num_items)
            out.write(items.astype("<i4").tobytes())
    pointers = {kind: np.concatenate([[0], np.cumsum(d)]) for kind, d in degrees.items()}
    pointers[USER].astype("<i8").tofile(folder / "examples" / "pointers.i64")
    _sort_by_item(dataset, pointers[ITEM], folder / SCRATCH)
    return {
        USER: Rows(pointers[USER], map_array(folder / "examples" / "items.i32", "<i4")),
        ITEM: Rows(pointers[ITEM], map_array(folder / SCRATCH, "<i4")),
    }


def _sort_by_item(dataset: Dataset, pointers: np.ndarray, target: Path) -> None:
    num_buckets = max(1, -(-int(pointers[-1]) // SORT_PAIRS))
    # Bucket b holds the items from ends[b - 1] to ends[b]; one very popular item may overfill its own.
    ends = np.searchsorted(pointers[1:], np.arange(1, num_buckets) * (pointers[-1] / num_buckets))
    spills = [target.with_name(f"{target.name}.{bucket}") for bucket in range(num_buckets)]
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(open(path, "wb")) for path in spills]
        for users, items in _pairs(dataset):
            buckets = np.searchsorted(ends, items, side="right")
            for bucket in np.unique(buckets):
                chosen = buckets == bucket
                files[bucket].write(np.stack([users[chosen], items[chosen]], 1).astype("<i4").tobytes())
    with open(target, "wb") as out:
        for path in spills:
            pairs = np.fromfile(path, "<i4").reshape(-1, 2)
            out.write(np.ascontiguousarray(pairs[np.argsort(pairs[:, 1], kind="stable"), 0]).tobytes())
            path.unlink()


def _assign(dataset: Dataset, rows: dict[str, Rows], config: GraphConfig) -> dict[str, np.ndarray]:
    """The part of every user and item, int16."""
    count, sizes = config.num_parts, {USER: dataset.num_users, ITEM: dataset.num_items}
    if count == 1:
        return {kind: np.zeros(size, np.int16) for kind, size in sizes.items()}
    if config.method == "metis":
        parts = _metis(rows, sizes, count)
    elif config.method == "range":
        # Equal shares of edges and nodes: an idle node costs a row of every table.
        loads = {kind: np.cumsum(rows[kind].degrees + 1) for kind in KINDS}
        parts = {kind: np.minimum((load - 1) * count // load[-1], count - 1) for kind, load in loads.items()}
    else:
        parts = {k: random_below(count, KINDS.index(k), torch.arange(size)).numpy() for k, size in sizes.items()}
    for kind in KINDS:  # DGL needs a node of every kind in every part
        for part in range(count):
            if not (parts[kind] == part).any():
                parts[kind][np.flatnonzero(parts[kind] == np.bincount(parts[kind]).argmax())[-1]] = part
    return {kind: p.astype(np.int16) for kind, p in parts.items()}


def _metis(rows: dict[str, Rows], sizes: dict[str, int], count: int) -> dict[str, np.ndarray]:
    """Few cut edges, balanced in edges and in nodes of each kind; the graph is in memory while METIS runs."""
    os.environ.setdefault("DGLBACKEND", "pytorch")
    import dgl

    users = torch.from_numpy(np.repeat(np.arange(sizes[USER]), rows[USER].degrees))
    items = torch.from_numpy(np.asarray(rows[USER].columns, dtype=np.int64)) + sizes[USER]
    graph = dgl.graph((torch.cat([users, items]), torch.cat([items, users])), num_nodes=sum(sizes.values()))
    kinds = torch.cat([torch.full((size,), number) for number, size in enumerate(sizes.values())])
    parts = dgl.transforms.metis_partition_assignment(graph, count, balance_ntypes=kinds, balance_edges=True).numpy()
    return {USER: parts[: sizes[USER]].copy(), ITEM: parts[sizes[USER] :].copy()}


@dataclass(frozen=True)
class Layout:
    """Where every node is, and DGL's numbering of all nodes.

    Attributes:
        own: By kind and part, the dataset indices of its nodes, ascending.
        starts: DGL's first node id of part 0's users, its items, part 1's users, ..., [2 · num_parts + 1].
        new: By kind, DGL's node id of every dataset index, int64.
    """

    own: dict[str, list[np.ndarray]]
    starts: np.ndarray
    new: dict[str, np.ndarray]

    @staticmethod
    def of(parts: dict[str, np.ndarray], count: int) -> "Layout":
        own = {kind: [np.flatnonzero(p == part) for part in range(count)] for kind, p in parts.items()}
        sizes = np.array([[len(own[kind][part]) for kind in KINDS] for part in range(count)])
        starts = np.concatenate([[0], np.cumsum(sizes.ravel())])
        new = {kind: np.empty(len(p), np.int64) for kind, p in parts.items()}
        for column, kind in enumerate(KINDS):
            for part, ids in enumerate(own[kind]):
                new[kind][ids] = np.arange(len(ids)) + starts[2 * part + column]
        return Layout(own, starts, new)

    def write(self, folder: Path) -> None:
        (folder / "nodes").mkdir()
        for kind, ids in self.new.items():
            ids.astype("<i8").tofile(folder / "nodes" / f"{kind}.i64")


def _gather(rows: Rows, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Degrees and neighbours (int32) of some rows, one after the other."""
    first, degrees = rows.pointers[ids], rows.pointers[ids + 1] - rows.pointers[ids]
    ends = np.cumsum(degrees)
    return degrees, rows.columns[np.arange(ends[-1] if len(ends) else 0) + np.repeat(first - ends + degrees, degrees)]


def _write_part(folder: Path, part: int, layout: Layout, rows: dict[str, Rows], edge_start: int) -> None:
    """DGL's files of one part, and what the store keeps beside them."""
    os.environ.setdefault("DGLBACKEND", "pytorch")
    import dgl
    from dgl.data.utils import save_tensors

    target = folder / f"part{part}"
    target.mkdir()
    own = {kind: layout.own[kind][part] for kind in KINDS}
    first, last = layout.starts[2 * part], layout.starts[2 * part + 2]
    scale = {kind: 1 / np.sqrt(np.maximum(rows[kind].degrees, 1)) for kind in KINDS}
    # Local numbers: own users, own items, then the other parts' items that own users have, then the users that own items have.
    nodes = [(kind, own[kind]) for kind in KINDS]
    degrees, local, weights, num_nodes = [], [], [], last - first
    for kind, other in ((USER, ITEM), (ITEM, USER)):
        found, columns = _gather(rows[kind], own[kind])
        numbers = layout.new[other][columns] - first
        foreign = (numbers < 0) | (numbers >= last - first)
        halo = np.unique(columns[foreign])
        numbers[foreign] = num_nodes + np.searchsorted(halo, columns[foreign])
        num_nodes += len(halo)
        nodes.append((other, halo))
        degrees.append(found)
        local.append(numbers)
        weights.append((np.repeat(scale[kind][own[kind]], found) * scale[other][columns]).astype("<f4"))
    pointers = np.concatenate([[0], np.cumsum(np.concatenate(degrees)), np.full(num_nodes - (last - first), sum(map(len, local)))])
    edges = torch.arange(int(pointers[-1]))
    graph = dgl.graph(("csc", (torch.from_numpy(pointers), torch.from_numpy(np.concatenate(local)), edges)), num_nodes=int(num_nodes))
    graph.ndata[dgl.NID] = torch.from_numpy(np.concatenate([layout.new[kind][ids] for kind, ids in nodes]))
    graph.ndata[dgl.NTYPE] = torch.from_numpy(np.concatenate([np.full(len(ids), KINDS.index(kind), np.int16) for kind, ids in nodes]))
    graph.ndata["inner_node"] = (torch.arange(int(num_nodes)) < last - first).to(torch.uint8)
    graph.edata[dgl.EID] = edges + edge_start
    graph.edata[dgl.ETYPE] = torch.repeat_interleave(torch.arange(2, dtype=torch.int32), torch.tensor([len(x) for x in local]))
    graph.edata["inner_edge"] = torch.ones(len(edges), dtype=torch.uint8)
    dgl.save_graphs(str(target / "graph.dgl"), [graph], formats=["csc"])
    data = {f"{kind}/orig": torch.from_numpy(ids) for kind, ids in own.items()}
    data |= {f"{kind}/degree": torch.from_numpy(found) for kind, found in zip(KINDS, degrees)}
    save_tensors(str(target / "node_feat.dgl"), data)
    save_tensors(str(target / "edge_feat.dgl"), {})
    np.concatenate([ids for _, ids in nodes]).astype("<i8").tofile(target / "orig.i64")
    np.concatenate(weights).tofile(target / "weights.f32")


def _edge_starts(layout: Layout, rows: dict[str, Rows]) -> np.ndarray:
    """First edge id of part 0's users, its items, part 1's users, ..., [2 · num_parts + 1]."""
    num_parts = len(layout.own[USER])
    counts = [int(rows[kind].degrees[layout.own[kind][part]].sum()) for part in range(num_parts) for kind in KINDS]
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


def _write_features(dataset: Dataset, folder: Path, modality: str, parts: np.ndarray, num_parts: int) -> None:
    """Each part's rows in the order of its own items, streamed."""
    with contextlib.ExitStack() as stack:
        files = []
        for part in range(num_parts):
            target = folder / f"part{part}" / "features"
            target.mkdir(exist_ok=True)
            files.append([stack.enter_context(open(target / f"{modality}.{ending}", "wb")) for ending in ("rows", "present")])
        for start, rows, present in dataset.feature_chunks(modality):
            for part, (row_file, present_file) in enumerate(files):
                own = parts[start : start + len(rows)] == part
                row_file.write(np.ascontiguousarray(rows[own]).tobytes())
                present_file.write(present[own].astype(np.uint8).tobytes())


def files_of(parts: Collection[int]) -> Callable[[str], bool]:
    """Which files of graph/ a host needs that serves, or owns rows of, some parts: theirs, and what belongs to no part."""

    def wanted(name: str) -> bool:
        found = re.match(r"part(\d+)/", name)
        return found is None or int(found[1]) in parts

    return wanted


def map_array(path: Path, dtype: str) -> np.ndarray:
    """A flat file as a memory-mapped array; an empty file as an empty array."""
    return np.memmap(path, dtype, "r") if path.stat().st_size else np.zeros(0, dtype)


def map_features(folder: Path, manifest: dict, part: int, modality: str) -> tuple[np.ndarray, np.ndarray]:
    """A part's raw feature rows, memory-mapped [n, dim], and their presence, bool [n]."""
    info = manifest["modalities"][modality]
    base = folder / f"part{part}" / "features"
    present = np.fromfile(base / f"{modality}.present", dtype=np.uint8).astype(bool)
    rows = np.memmap(base / f"{modality}.rows", dtype=info["dtype"], mode="c", shape=(len(present), info["dim"])) if len(present) else None
    return (np.zeros((0, info["dim"]), info["dtype"]) if rows is None else rows), present


def mapped(path: Path, dtype: str) -> torch.Tensor:
    """A flat file as a memory-mapped tensor; what is written to it stays in this process."""
    return torch.from_numpy(np.memmap(path, dtype, "c") if path.stat().st_size else np.zeros(0, dtype))
