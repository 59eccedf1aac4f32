"""`partition`: dataset/ -> graph/, DGL partitions of the train graph plus each part's feature rows as flat files.

Layout of graph/: `promptmm.json` and `part<P>/*.dgl` as DGL writes them, with the node data `degree` and `orig` (the node's index in
the dataset), and for every part `features/<modality>.rows` (row-major, in the order of the part's own items) with
`<modality>.present` (one byte a row).
"""

import contextlib
import io
import itertools
import json
import logging
import os
from pathlib import Path

import numpy as np

from ..core.errors import InputError
from ..core.storage import write_artifact
from .config import GraphConfig
from .dataset import Dataset

GRAPH_NAME = "promptmm"
USER, ITEM, EDGE, BACK_EDGE = "user", "item", "interacts", "interacted_by"


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
        original_items = _write_dgl_parts(dataset, folder, config)
        metadata["part_items"] = _item_ranges(folder, config.num_parts)
        for modality in dataset.modalities:
            rows, present = dataset.features(modality)
            for part, (first, last) in enumerate(metadata["part_items"]):
                own = original_items[first:last]
                target = folder / f"part{part}" / "features"
                target.mkdir(parents=True, exist_ok=True)
                np.ascontiguousarray(rows[own]).tofile(target / f"{modality}.rows")
                present[own].astype(np.uint8).tofile(target / f"{modality}.present")
    return metadata


def _write_dgl_parts(dataset: Dataset, folder: Path, config: GraphConfig) -> np.ndarray:
    """Writes DGL's files; returns the dataset index of every item in DGL's new order."""
    os.environ.setdefault("DGLBACKEND", "pytorch")
    import dgl
    import torch

    users, items = (torch.from_numpy(ids) for ids in dataset.interactions("train"))
    graph = dgl.heterograph(
        {(USER, EDGE, ITEM): (users, items), (ITEM, BACK_EDGE, USER): (items, users)},
        num_nodes_dict={USER: dataset.num_users, ITEM: dataset.num_items},
    )
    for kind, ends, count in ((USER, users, dataset.num_users), (ITEM, items, dataset.num_items)):
        graph.nodes[kind].data["orig"] = torch.arange(count)
        graph.nodes[kind].data["degree"] = torch.bincount(ends, minlength=count)
    quiet = logging.getLogger("dgl")
    level = quiet.level
    quiet.setLevel(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # DGL prints its own timings
            node_map, _ = dgl.distributed.partition_graph(
                graph, GRAPH_NAME, config.num_parts, str(folder), part_method=config.method, num_hops=1,
                return_mapping=True, graph_formats=["csc"],
            )  # fmt: skip
    finally:
        quiet.setLevel(level)
    if config.num_parts == 1 and not isinstance(node_map, dict):
        return np.arange(dataset.num_items)
    return node_map[ITEM].numpy()


def _item_ranges(folder: Path, num_parts: int) -> list[list[int]]:
    """[first, last) of every part's items among all items in DGL's new order.

    DGL's own ranges count nodes of all types together; a part's items are as many as its range is long.
    """
    ranges = json.loads((folder / f"{GRAPH_NAME}.json").read_text())["node_map"][ITEM][:num_parts]
    ends = list(itertools.accumulate(last - first for first, last in ranges))
    return [[end - (last - first), end] for end, (first, last) in zip(ends, ranges)]
