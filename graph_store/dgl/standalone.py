"""DGL's standalone store: the code of its servers and clients in this process, for a graph of one part, without sockets."""

import functools
import itertools
import os
from pathlib import Path

import dgl.distributed
from dgl.distributed import kvstore

from ...core.artifact import open_artifact
from ...core.errors import InputError
from ..graph_artifact import GRAPH_NAME
from ..session import PartLocation, Session
from .client import GraphClient

HERE = "here"
_numbers = itertools.count()


def connect_alone(graph_url: str, cache_dir: str | None = None) -> GraphClient:
    """Connects this process, as the only worker, to a graph of one part.

    Each connection has a store of its own, so that graphs do not meet in one process, and tables go with their connection.

    Args:
        graph_url: The graph/ artifact.
        cache_dir: Folder for a local copy where it is remote.

    Raises:
        InputError: the graph has several parts, or is missing or damaged.
    """
    folder, manifest = open_artifact(graph_url, "graph", cache_dir)
    if manifest["num_parts"] != 1:
        raise InputError(
            f"{graph_url} has {manifest['num_parts']} parts, each for a host of its own, and cluster.executor=local is one process; "
            "partition again with graph.num_parts=1 (run.redo=partition), or set cluster.executor=ray"
        )
    return GraphClient(_open(folder), Session(f"alone{next(_numbers)}", graph_url, (PartLocation(HERE, str(folder)),)), folder, 0, [HERE])


def _open(folder: Path) -> dgl.distributed.DistGraph:
    _initialize()
    kvstore.close_kvstore()
    kvstore.init_kvstore(None, 1, "default")
    return dgl.distributed.DistGraph(GRAPH_NAME, part_config=str(folder / f"{GRAPH_NAME}.json"))


@functools.cache
def _initialize() -> None:
    """Puts this process into DGL's standalone mode, once."""
    os.environ["DGL_DIST_MODE"] = "standalone"
    dgl.distributed.initialize(None)
