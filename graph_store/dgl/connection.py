"""Connecting a worker to the servers of a session, and leaving them."""

import atexit
import contextlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import ray
from ray.actor import ActorHandle

from ..backend import GraphConnection
from ..graph_artifact import GRAPH_NAME
from ..ownership import owners_of_part
from ..session import Session
from .servers import CALL_SECONDS
from .session_files import dgl_environment, local_folder, write_session_config

WATCH_SECONDS = 1.0
READY_SECONDS = 0.1
DEAD_SERVER_EXIT = 13


@contextlib.contextmanager
def connect(service: ActorHandle, session: Session, rank: int, worker_nodes: Sequence[str]) -> Iterator[GraphConnection]:
    """Connects this worker to a session's servers, and leaves together with its peers when the block ends without an error.

    A watchdog asks for dead servers every second and ends the process (exit code 13) when there is one: DGL's calls would hang for ever.
    The failure policy of the job then starts a new attempt with fresh servers.

    Args:
        service: The `GraphService` actor.
        session: What its `restart` returned, the same on every worker.
        rank: This worker.
        worker_nodes: Ray node id of every rank.
    """
    folder = local_folder(session, _foreign_parts(session, rank, worker_nodes))
    workdir = Path(tempfile.mkdtemp(prefix=f"promptmm-{session.name}-client-"))
    (workdir / "ip_config.txt").write_text(session.ip_config)
    import dgl.distributed  # only clients need the memory that it takes

    from .client import GraphClient
    from .neighbours import register

    register()
    config = write_session_config(folder, [], session.name, workdir)
    os.environ.update(dgl_environment(config, session.num_clients), DGL_ROLE="client", DGL_IP_CONFIG=str(workdir / "ip_config.txt"))
    done = threading.Event()
    threading.Thread(target=_watch, args=(service, session.name, done), daemon=True).start()
    _wait_for_servers(service)
    dgl.distributed.initialize(str(workdir / "ip_config.txt"))
    atexit.unregister(dgl.distributed.exit_client)  # at exit it would wait at a barrier for peers that may be dead
    graph = dgl.distributed.DistGraph(f"{GRAPH_NAME}_{session.name}")
    client = GraphClient(graph, session, folder, rank, worker_nodes)
    try:
        yield client
        done.set()
        dgl.distributed.exit_client()
    finally:
        done.set()
        shutil.rmtree(workdir, ignore_errors=True)


def _wait_for_servers(service: ActorHandle) -> None:
    """Returns when the servers take connections, or after a minute: a client that comes earlier sleeps three seconds at a time."""
    deadline = time.monotonic() + CALL_SECONDS
    while time.monotonic() < deadline and not ray.get(service.are_listening.remote(), timeout=CALL_SECONDS):
        time.sleep(READY_SECONDS)


def _foreign_parts(session: Session, rank: int, worker_nodes: Sequence[str]) -> list[int]:
    """Lists the parts of other hosts that a rank owns rows of."""
    part_nodes = session.part_nodes
    return [
        part
        for part, node in enumerate(part_nodes)
        if node != worker_nodes[rank] and rank in owners_of_part(part, part_nodes, worker_nodes)
    ]  # fmt: skip


def _watch(service: ActorHandle, name: str, done: threading.Event) -> None:
    while not done.wait(WATCH_SECONDS):
        try:
            dead = ray.get(service.dead_servers.remote(name), timeout=CALL_SECONDS)
        except Exception as error:  # the supervisor itself is gone
            dead = [f"graph service does not answer ({type(error).__name__})"]
        if dead and not done.is_set():
            print("leaving: " + "; ".join(dead), flush=True)
            os._exit(DEAD_SERVER_EXIT)
