"""What a session keeps on a host: the graph/ artifact, DGL's configuration of server and client processes, shared memory."""

import json
from collections.abc import Collection
from pathlib import Path

import ray

from ...core.artifact import open_artifact
from ...core.errors import InputError
from ..graph_artifact import GRAPH_NAME, files_of
from ..session import Session


def local_folder(session: Session, parts: Collection[int] = ()) -> Path:
    """Finds the artifact's folder on this host, its server's copy or a shared file system's, and fetches it where some parts lack.

    Args:
        session: The servers.
        parts: Parts that must be there, beside the one that this host serves.
    """
    here = ray.get_runtime_context().get_node_id()
    served = {location.node: location.folder for location in session.locations}
    folder = Path(served.get(here, session.locations[0].folder))
    if folder.is_dir() and all((folder / f"part{part}").is_dir() for part in parts):
        return folder
    return open_artifact(session.graph_url, "graph", session.cache_dir, files_of(parts))[0]


def write_session_config(folder: Path, part_ids: list[int], session: str, target: Path) -> Path:
    """Writes a DGL partition config whose graph and node data carry the session in their names: no two sessions share memory by accident.

    Args:
        folder: The graph/ artifact.
        part_ids: Parts that this host serves.
        session: Suffix of the names.
        target: Folder for the config and the renamed node data.

    Returns:
        The config's path.

    Raises:
        InputError: the artifact's configuration names a file outside its folder.
    """
    from dgl.data.utils import load_tensors, save_tensors

    config = json.loads((folder / f"{GRAPH_NAME}.json").read_text())
    config["graph_name"] = f"{GRAPH_NAME}_{session}"
    for part in range(config["num_parts"]):
        entry = config[f"part-{part}"]
        for key, name in entry.items():
            entry[key] = str(_inside(folder, name))
        if part in part_ids:
            renamed = {f"{name}_{session}": data for name, data in load_tensors(entry["node_feats"]).items()}
            entry["node_feats"] = str(target / f"node_feats_{part}.dgl")
            save_tensors(entry["node_feats"], renamed)
    path = target / f"{GRAPH_NAME}.json"
    path.write_text(json.dumps(config))
    return path


def _inside(folder: Path, name: str) -> Path:
    """Returns the path of a file that a graph's configuration names.

    Raises:
        InputError: it is not in the graph's folder; the configuration may be somebody else's.
    """
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise InputError(
            f"{folder / GRAPH_NAME}.json names {name!r}, which is no file in the graph's folder; make the graph again with "
            "run.redo=partition, and do not use a graph from a source that you do not trust"
        )
    return path


def dgl_environment(config: Path, num_clients: int) -> dict[str, str]:
    """Makes the environment variables that server and client processes share.

    Args:
        config: What `write_session_config` returned.
        num_clients: Workers that connect.
    """
    return {
        "DGLBACKEND": "pytorch",
        "DGL_DIST_MODE": "distributed",
        "DGL_CONF_PATH": str(config),
        "DGL_NUM_SERVER": "1",
        "DGL_NUM_CLIENT": str(num_clients),
        "DGL_NUM_SAMPLER": "0",
        "DGL_GRAPH_FORMAT": "csc",
        "DGL_DIST_MAX_TRY_TIMES": "40",
    }


def sweep_shared_memory(session: str) -> list[str]:
    """Removes the segments of a session that a killed server left behind; returns their names."""
    leaked = [path for path in Path("/dev/shm").iterdir() if session in path.name]
    for path in leaked:
        path.unlink(missing_ok=True)
    return [path.name for path in leaked]
