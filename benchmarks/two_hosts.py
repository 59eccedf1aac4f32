"""A benchmark on two simulated hosts: a part of the graph, a DGL server and a worker with one torch thread on each, without Ray.

A script that uses it starts itself again as both hosts' process (`run`), which calls `serve_and_work`.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

NODES = ["host0", "host1"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of a host's process, hidden from people."""
    for name in ("role", "session", "servers", "master", "folder"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)


def serve_and_work(options: argparse.Namespace, work: Callable[[Any, int], Iterator[dict]], prepare: Any = None) -> None:
    """A host's process: its server in the background, its worker here.

    Args:
        options: With `folder` (graph/ is in it), `rank`, `session`, `servers`, `master` and `steps`.
        work: (DistGraph, rank) -> facts of one step after another.
        prepare: Changes the host's session folder before the server starts; called with (graph folder, folder, part).
    """
    from promptmm.graph_store.dgl.session_files import dgl_environment, write_session_config

    folder, rank = Path(options.folder), options.rank
    with tempfile.TemporaryDirectory() as target:
        config = write_session_config(folder / "graph", [rank], options.session, Path(target))
        if prepare is not None:
            prepare(folder / "graph", Path(target), rank)
        (Path(target) / "ip_config.txt").write_text(options.servers.replace(",", "\n") + "\n")
        os.environ.update(dgl_environment(config, 2), DGL_IP_CONFIG=str(Path(target) / "ip_config.txt"))
        roles = {**os.environ, "DGL_ROLE": "server", "DGL_SERVER_ID": str(rank)}
        with open(folder / f"server-{options.role}-{rank}.log", "wb") as log:
            words = [sys.executable, "-m", "promptmm.graph_store.dgl.server_process"]
            server = subprocess.Popen(words, env=roles, stdout=log, stderr=subprocess.STDOUT)
        try:
            _work(options, work, rank)
        finally:
            server.terminate()
            server.wait(20)


def _work(options: argparse.Namespace, work: Callable[[Any, int], Iterator[dict]], rank: int) -> None:
    """Connects, does `options.steps` steps after three more, and prints what it measured."""
    os.environ.update(DGL_ROLE="client", LOCAL_RANK="0", RANK=str(rank), WORLD_SIZE="2", DS_ACCELERATOR="cpu")
    import dgl
    import torch
    import torch.distributed as dist
    from promptmm.graph_store.dgl.neighbours import register

    register()
    torch.set_num_threads(1)
    dgl.distributed.initialize(os.environ["DGL_IP_CONFIG"])
    dist.init_process_group("gloo", init_method=f"tcp://{options.master}", rank=rank, world_size=2)
    graph = dgl.distributed.DistGraph(f"promptmm_{options.session}")
    steps = work(graph, rank)
    times, facts = [], {}
    for number in range(options.steps + 3):
        dist.barrier()
        started = time.perf_counter()
        facts = next(steps)
        dist.barrier()
        if number >= 3:
            times.append(time.perf_counter() - started)
    print("RESULT " + json.dumps({"seconds": statistics.median(times), "total": sum(times), **facts}), flush=True)
    dist.barrier()
    os._exit(0)  # DGL's exit waits for peers; the servers are ended by their hosts


def client_of(options: argparse.Namespace, graph: Any, rank: int) -> Any:
    """The project's connection to the graph."""
    from promptmm.graph_store.dgl.client import GraphClient
    from promptmm.graph_store.session import PartLocation, Session

    folder = Path(options.folder) / "graph"
    session = Session(options.session, str(folder), tuple(PartLocation(node, str(folder)) for node in NODES))
    return GraphClient(graph, session, folder, rank, NODES)


def sampled_teacher(config: Any, fan_out: int, client: Any, rank: int) -> Any:
    """The project's sampled engine with a teacher at its start, on one of the two hosts.

    Args:
        config: The teacher's settings.
        fan_out: Neighbours drawn a node.
        client: `client_of`'s.
        rank: Of this host's worker.
    """
    import torch
    from promptmm.core.config import EvaluationConfig, SamplingConfig
    from promptmm.distributed.config import ClusterConfig
    from promptmm.distributed.engines.sampled.trainer import SampledTrainer
    from promptmm.distributed.messages import TeacherJob
    from promptmm.distributed.tasks.teacher import PromptTeacherTask
    from promptmm.distributed.worker import Worker

    cluster, sampling = ClusterConfig(engine="sampled", num_workers=2), SamplingConfig(fan_outs=[fan_out])
    job = TeacherJob("memory://nowhere", EvaluationConfig(), cluster, sampling, 0, config=config)
    worker = Worker(rank, 2, torch.device("cpu"), tuple(NODES))
    return SampledTrainer(PromptTeacherTask(job, worker), job, client, worker, None)


def run(script: str, role: str, hosts: Any, folder: str, words: list[str], timeout: float = 400, allocator: bool = True) -> list[dict]:
    """Runs a script as both hosts; what their workers measured.

    Args:
        script: The script that calls `serve_and_work`.
        role: Its --role.
        hosts: `tests/hosts.py`'s.
        folder: Where graph/ is.
        words: Further arguments.
        timeout: Seconds.
        allocator: With the allocator settings of the project's workers.
    """
    from promptmm.distributed.config import ClusterConfig
    from promptmm.distributed.execution.session import worker_environment

    session = f"{role}{os.urandom(3).hex()}"
    servers = ",".join(f"{hosts.address(h)} {30_100 + h}" for h in range(2))
    command = [sys.executable, "-W", "ignore", script, "--role", role, "--session", session, "--servers", servers]
    command += ["--master", f"{hosts.address(0)}:{_free_port()}", "--folder", folder, *words]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "1", "DGLBACKEND": "pytorch"}
    environment.update({k: v for k, v in worker_environment(ClusterConfig()).items() if allocator or not k.startswith("MALLOC")})
    running = [
        subprocess.Popen(
            hosts.command(rank, [*command, "--rank", str(rank)]), env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        output = [process.communicate(timeout=timeout)[0] for process in running]
    finally:
        for rank in range(2):
            for pid in hosts.pids(rank):
                os.kill(pid, 9)
    if not all("RESULT " in text for text in output):
        raise SystemExit(f"{role} failed:\n{output[0][-3000:]}\n{output[1][-3000:]}")
    return [json.loads(text.split("RESULT ")[1].splitlines()[0]) for text in output]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def simulated() -> Any:
    """tests/hosts.py.

    Raises:
        SystemExit: hosts cannot be simulated here.
    """
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    import hosts

    if hosts.why_not():
        raise SystemExit(hosts.why_not())
    return hosts
