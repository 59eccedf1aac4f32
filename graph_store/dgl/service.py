"""Supervised DGL servers: one Ray actor per part, each owning one DGL server process.

Protocol
1. The driver creates a `GraphService` for a graph/ artifact.
   Where it knows the workers' hosts before they run, it has `prepare` start the servers of the first attempt meanwhile.
2. At the start of every attempt rank 0 of the workers calls `restart` with the workers' nodes: a `GraphServer` actor is placed on one
   host for each part, the workers' hosts first; servers of an earlier attempt are stopped (a DGL server never takes a second set of
   clients), and fresh ones start under a name of their own, so that jobs on one host do not collide.
3. The client connects (`connection.py`), and while connected asks `dead_servers` every second: DGL itself never notices a death.
4. When the client leaves, the servers end by themselves. `stop` ends those that did not and removes leaked shared memory.

A server process dies with its actor (PR_SET_PDEATHSIG), and the actor with the driver.
"""

import contextlib
import uuid
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ...core.artifact import read_manifest
from ...core.errors import InputError
from ..session import PartLocation, Session
from .servers import CALL_SECONDS, GraphServer
from .session_files import sweep_shared_memory

FETCH_BYTES_A_SECOND = 10 << 20  # the slowest store that is waited for


@ray.remote(num_cpus=0)
class GraphService:
    """Supervisor of one graph's servers: a fresh set for every attempt.

    Args:
        graph_url: The artifact.
        manifest: Its manifest.
        cache_dir: Where the hosts download it to, where it is remote.
        key: With what the names of all its sessions begin; the same where this process is started again.
    """

    def __init__(self, graph_url: str, manifest: dict, cache_dir: str | None, key: str) -> None:
        self.key = key
        self.graph_url, self.num_parts, self.cache_dir = graph_url, manifest["num_parts"], cache_dir
        self.fetch_seconds = CALL_SECONDS + sum(file["bytes"] for file in manifest["files"].values()) / FETCH_BYTES_A_SECOND
        self.servers: list[Any] = []  # handles of `GraphServer`, whose methods have no types
        self.pids: list[int] = []
        self.name = ""
        self.ip_config = ""
        self.prepared: tuple[list[str], int, Session] | None = None

    def prepare(self, worker_nodes: list[str], num_clients: int = 1) -> None:
        """Starts the servers of the first attempt while its workers start; what cannot be is raised by `restart`.

        Args:
            worker_nodes, num_clients: What `restart` is going to be called with.
        """
        with contextlib.suppress(Exception):
            self.prepared = (worker_nodes, num_clients, self._start(worker_nodes, num_clients))

    def restart(self, worker_nodes: list[str], num_clients: int = 1) -> Session:
        """Stops what runs, starts one server for each part, and says what workers need to connect.

        Args:
            worker_nodes: Ray node id of every worker; parts go to their hosts first, part 0 to the first worker's.
            num_clients: 1, rank 0 alone, or all workers.

        Raises:
            InputError: there are fewer hosts than parts (two parts on one host would share DGL's shared memory), or a client's host
                would have no part (DGL's clients run beside a server).
        """
        prepared, self.prepared = self.prepared, None
        if prepared is not None and prepared[:2] == (worker_nodes, num_clients) and not self.dead_servers(self.name):
            return prepared[2]
        return self._start(worker_nodes, num_clients)

    def _start(self, worker_nodes: list[str], num_clients: int) -> Session:
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
        self.name = name = f"{self.key}{uuid.uuid4().hex[:4]}"
        self.servers = [
            GraphServer.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(  # type: ignore[attr-defined]
                self.graph_url, part, self.cache_dir
            )
            for part, node in enumerate(hosts[: self.num_parts])
        ]
        ray.get([s.fetch.remote() for s in self.servers], timeout=self.fetch_seconds)
        ip_config = "\n".join(ray.get([s.address.remote() for s in self.servers], timeout=CALL_SECONDS)) + "\n"
        self.ip_config = ip_config
        starts = [s.start.remote(name, ip_config, num_clients) for s in self.servers]
        self.pids = ray.get(starts, timeout=CALL_SECONDS)
        locations: list[PartLocation] = ray.get([s.location.remote() for s in self.servers], timeout=CALL_SECONDS)
        return Session(name, self.graph_url, tuple(locations), ip_config, num_clients, tuple(self.servers), self.cache_dir)

    def are_listening(self) -> bool:
        """Returns whether every server takes connections, or has ended."""
        ports = [int(line.rpartition(" ")[2]) for line in self.ip_config.splitlines()]
        return all(ray.get([s.is_listening.remote(port) for s, port in zip(self.servers, ports)], timeout=CALL_SECONDS))

    def dead_servers(self, name: str) -> list[str]:
        """Describes each server process that has ended, in one line with the end of its output.

        Args:
            name: Of the session that is asked for: servers of an earlier life of this process ended with it.
        """
        if name != self.name:
            return ["the graph service was started again, and its servers ended with it"]
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
        sweep_shared_memory(self.key)  # what servers left on this host that an earlier life of this process had started


def start_service(graph_url: str, cache_dir: str | None = None) -> ActorHandle:
    """Creates the `GraphService` actor of a graph/ artifact, on the driver's node; every server fetches and verifies its own part.

    Args:
        graph_url: The artifact.
        cache_dir: Where the hosts download it to, where it is remote.
    """
    manifest = read_manifest(graph_url, "graph")
    strategy = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = GraphService
    # Started again where it dies: its servers die with it, and the next attempt of the workers asks for fresh ones.
    return actor.options(scheduling_strategy=strategy, max_restarts=-1).remote(graph_url, manifest, cache_dir, uuid.uuid4().hex[:8])
