"""Supervised DGL servers: one Ray actor per part, each owning one DGL server process.

Protocol
1. The driver creates a `GraphService` for a graph/ artifact.
2. At the start of every attempt rank 0 of the workers calls `restart` with the workers' nodes: a `GraphServer` actor is placed on one
   host for each part, the workers' hosts first; servers of an earlier attempt are stopped (a DGL
   server never takes a second set of clients), and fresh ones start under a name of their own, so that jobs on one host do not collide.
3. The client connects (`graph_store/client.py`), and while connected asks `dead_servers` every second: DGL itself never notices a death.
4. When the client leaves, the servers end by themselves. `stop` ends those that did not and removes leaked shared memory.

A server process dies with its actor (PR_SET_PDEATHSIG), and the actor with the driver.
"""

import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ..core.errors import InputError
from ..core.storage import open_artifact, read_manifest
from .feature_rows import FeatureRows, map_features
from .partition import GRAPH_NAME, files_of

STOP_SECONDS = 10.0
CALL_SECONDS = 60.0
FETCH_BYTES_A_SECOND = 10 << 20  # the slowest store that is waited for


def _die_with_parent() -> None:
    ctypes.CDLL("libc.so.6").prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def write_session_config(folder: Path, part_ids: list[int], session: str, target: Path) -> Path:
    """A DGL partition config whose graph and node data carry the session in their names, so that shared memory is never shared by accident.

    Args:
        folder: The graph/ artifact.
        part_ids: Parts that this host serves.
        session: Suffix of the names.
        target: Folder for the config and the renamed node data.
    """
    from dgl.data.utils import load_tensors, save_tensors

    config = json.loads((folder / f"{GRAPH_NAME}.json").read_text())
    config["graph_name"] = f"{GRAPH_NAME}_{session}"
    for part in range(config["num_parts"]):
        entry = config[f"part-{part}"]
        for key, name in entry.items():
            entry[key] = str(folder / name)
        if part in part_ids:
            renamed = {f"{name}_{session}": data for name, data in load_tensors(entry["node_feats"]).items()}
            entry["node_feats"] = str(target / f"node_feats_{part}.dgl")
            save_tensors(entry["node_feats"], renamed)
    path = target / f"{GRAPH_NAME}.json"
    path.write_text(json.dumps(config))
    return path


@ray.remote(num_cpus=0, max_restarts=0)
class GraphServer:
    """Owns the DGL server process of one part, and reads that part's feature rows for workers on other hosts."""

    def __init__(self, graph_url: str, part: int, cache_dir: str | None) -> None:
        self.graph_url, self.part, self.cache_dir = graph_url, part, cache_dir
        self.folder, self.manifest = Path(), {}  # type: ignore[var-annotated]
        self.process: subprocess.Popen | None = None
        self.workdir: Path | None = None
        self.session = ""

    def fetch(self) -> None:
        """Verifies this part's files, and fetches them first where graph/ is remote.

        Raises:
            InputError: a file is missing or not as the manifest says.
        """
        self.folder, self.manifest = open_artifact(self.graph_url, "graph", self.cache_dir, files_of([self.part]))

    def address(self) -> str:
        """`ip port` of a free port on this host's cluster interface."""
        ip = ray.util.get_node_ip_address()
        with socket.socket() as probe:
            probe.bind((ip, 0))
            return f"{ip} {probe.getsockname()[1]}"

    def start(self, session: str, ip_config: str, num_clients: int) -> int:
        """Starts the DGL server process; returns its pid."""
        self.session = session
        self.workdir = Path(tempfile.mkdtemp(prefix=f"promptmm-{session}-"))
        (self.workdir / "ip_config.txt").write_text(ip_config)
        config = write_session_config(self.folder, [self.part], session, self.workdir)
        environment = dict(
            os.environ,
            **dgl_environment(config, num_clients),
            DGL_ROLE="server",
            DGL_SERVER_ID=str(self.part),
            DGL_IP_CONFIG=str(self.workdir / "ip_config.txt"),
        )
        with open(self.workdir / "server.log", "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "promptmm.graph_store.server_process"],
                env=environment, stdout=log, stderr=subprocess.STDOUT, preexec_fn=_die_with_parent,
            )  # fmt: skip
        return self.process.pid

    def exit_code(self) -> int | None:
        """The process's exit code, None while it runs."""
        return None if self.process is None else self.process.poll()

    def log(self) -> str:
        """The end of the server's output."""
        return "" if self.workdir is None else (self.workdir / "server.log").read_text(errors="replace")[-2000:]

    def location(self) -> tuple[str, str]:
        """Node id and local folder of the artifact."""
        return ray.get_runtime_context().get_node_id(), str(self.folder)

    def feature_rows(self, modality: str, first: int, last: int) -> FeatureRows:
        """Rows [first, last) of this part as they are stored; for workers on other hosts."""
        return map_features(self.folder, self.manifest, self.part, modality)[first:last].copy()

    def stop(self) -> None:
        """Ends the process (SIGTERM first) and removes its files and shared memory."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(STOP_SECONDS)
        if self.session:
            sweep_shared_memory(self.session)
            for folder in Path(tempfile.gettempdir()).glob(f"promptmm-{self.session}-*"):  # ours, and those of killed clients
                shutil.rmtree(folder, ignore_errors=True)


def sweep_shared_memory(session: str) -> list[str]:
    """Removes the segments of a session that a killed server left behind; returns their names."""
    leaked = [path for path in Path("/dev/shm").iterdir() if session in path.name]
    for path in leaked:
        path.unlink(missing_ok=True)
    return [path.name for path in leaked]


def dgl_environment(config: Path, num_clients: int) -> dict[str, str]:
    """DGL_* variables that server and client share."""
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


@ray.remote(num_cpus=0)
class GraphService:
    """Supervisor of one graph's servers: a fresh set for every attempt."""

    def __init__(self, graph_url: str, manifest: dict, cache_dir: str | None) -> None:
        self.graph_url, self.num_parts, self.cache_dir = graph_url, manifest["num_parts"], cache_dir
        self.fetch_seconds = CALL_SECONDS + sum(file["bytes"] for file in manifest["files"].values()) / FETCH_BYTES_A_SECOND
        self.servers: list[Any] = []
        self.pids: list[int] = []

    def restart(self, worker_nodes: list[str], num_clients: int = 1) -> dict:
        """Stops what runs, starts one server for each part, and returns what clients need to connect.

        Args:
            worker_nodes: Ray node id of every worker; parts go to their hosts first, part 0 to the first worker's.
            num_clients: 1, rank 0 alone, or all workers.

        Raises:
            InputError: there are fewer hosts than parts (two parts on one host would share DGL's shared memory), or a client's host
                would have no part (DGL's clients run beside a server).
        """
        self.stop()
        others = sorted((n["NodeManagerAddress"], n["NodeID"]) for n in ray.nodes() if n["Alive"])
        hosts = list(dict.fromkeys([*worker_nodes, *(node for _, node in others)]))
        if self.num_parts > len(hosts):
            raise InputError(
                f"graph.num_parts={self.num_parts} needs {self.num_parts} hosts, one for each part, and the Ray cluster has {len(hosts)}; "
                f"partition again with graph.num_parts={len(hosts)} or add hosts"
            )
        if num_clients > 1 and len(set(worker_nodes)) > self.num_parts:
            raise InputError(
                f"graph.num_parts={self.num_parts}: with cluster.engine=sampled every worker's host serves a part, and the workers run on "
                f"{len(set(worker_nodes))} hosts; partition again with graph.num_parts={len(set(worker_nodes))}, or use fewer hosts"
            )
        session = uuid.uuid4().hex[:10]
        self.servers = [
            GraphServer.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(  # type: ignore[attr-defined]
                self.graph_url, part, self.cache_dir
            )
            for part, node in enumerate(hosts[: self.num_parts])
        ]
        ray.get([s.fetch.remote() for s in self.servers], timeout=self.fetch_seconds)
        ip_config = "\n".join(ray.get([s.address.remote() for s in self.servers], timeout=CALL_SECONDS)) + "\n"
        starts = [s.start.remote(session, ip_config, num_clients) for s in self.servers]
        self.pids = ray.get(starts, timeout=CALL_SECONDS)
        return {
            "session": session,
            "ip_config": ip_config,
            "num_clients": num_clients,
            "locations": ray.get([s.location.remote() for s in self.servers], timeout=CALL_SECONDS),
            "servers": self.servers,
            "graph_url": self.graph_url,
            "cache_dir": self.cache_dir,
        }

    def process_ids(self) -> list[int]:
        """Pids of the DGL server processes, by part."""
        return self.pids

    def dead_servers(self) -> list[str]:
        """One line for each server process that has ended."""
        lines = []
        for part, server in enumerate(self.servers):
            try:
                code = ray.get(server.exit_code.remote(), timeout=CALL_SECONDS)
                if code is not None:
                    lines.append(
                        f"graph server of part {part} ended with code {code}: {ray.get(server.log.remote(), timeout=CALL_SECONDS)}"
                    )
            except ray.exceptions.RayError as error:
                lines.append(f"graph server of part {part} is gone ({type(error).__name__})")
        return lines

    def stop(self) -> None:
        """Ends every server."""
        for server in self.servers:
            with contextlib.suppress(ray.exceptions.RayError):  # its actor died, and its process with it
                ray.get(server.stop.remote(), timeout=CALL_SECONDS)
            ray.kill(server)
        self.servers = []


def start_service(graph_url: str, cache_dir: str | None = None) -> Any:
    """Creates the supervisor of a graph/ artifact, on the driver's node; every server fetches and verifies its own part."""
    manifest = read_manifest(graph_url, "graph")
    strategy = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = GraphService
    return actor.options(scheduling_strategy=strategy).remote(graph_url, manifest, cache_dir)
