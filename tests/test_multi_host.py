"""Two hosts, two parts of the graph: the same teacher as on one, and a killed graph server is survived."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import hosts as simulated

pytestmark = pytest.mark.skipif(simulated.why_not() is not None, reason=str(simulated.why_not()))

SECONDS = 300
SETTINGS = [
    "source.synthetic_num_users=150", "source.synthetic_num_items=90", "source.synthetic_interactions_per_user=12",
    "teacher.dim=8", "teacher.hidden=[12]", "teacher.train.batch_size=256", "teacher.train.epochs=3",
    "evaluation.cutoffs=[5, 20]",
]  # fmt: skip
PROMPTMM = [sys.executable, "-m", "promptmm.jobs.cli"]


def call(*words: str, env: dict | None = None) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def losses(folder: Path) -> list[float]:
    lines = (folder / "training" / "teacher" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.fixture(scope="module")
def environment():
    """Alike on every host: gloo on the hosts' network, Ray's token authentication."""
    ray = str(Path(sys.executable).parent)
    return {
        **os.environ,
        "PATH": f"{ray}:{os.environ['PATH']}",
        "GLOO_SOCKET_IFNAME": "eth0",
        "RAY_AUTH_MODE": "token",
        "RAY_ADDRESS": "",
    }


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, environment):
    """A Ray cluster of two hosts."""
    with simulated.simulated_hosts(2, tmp_path_factory.mktemp("hosts")) as hosts:
        ray = [
            sys.executable,
            "-m",
            "ray.scripts.scripts",
            "start",
            "--disable-usage-stats",
            "--num-cpus=3",
            "--object-store-memory=200000000",
        ]
        temporary = tmp_path_factory.mktemp("ray")
        head = [*ray, "--head", "--port=6379", "--include-dashboard=false", f"--temp-dir={temporary}"]
        call(*hosts.command(0, [*head, f"--node-ip-address={hosts.address(0)}"]), env=environment)
        worker = [*ray, f"--address={hosts.address(0)}:6379", f"--node-ip-address={hosts.address(1)}"]
        call(*hosts.command(1, worker), env=environment)
        yield hosts


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Two runs of the same catalog: one part and two."""
    folders = {parts: tmp_path_factory.mktemp("runs") / f"parts{parts}" for parts in (1, 2)}
    for parts, folder in folders.items():
        for verb in ("prepare", "partition"):
            call(*PROMPTMM, verb, *SETTINGS, f"graph.num_parts={parts}", f"run.dir={folder}")
    return folders


def train(hosts, folder: Path, parts: int) -> list[str]:
    words = [*PROMPTMM, "train-teacher", *SETTINGS, f"run.dir={folder}", f"graph.num_parts={parts}"]
    return hosts.command(0, [*words, "cluster.num_workers=2", f"cluster.address={hosts.address(0)}:6379"])


def graph_servers() -> list[psutil.Process]:
    return [p for p in psutil.process_iter(["cmdline"]) if "promptmm.graph_store.server_process" in (p.info["cmdline"] or [])]


def test_two_parts_on_two_hosts_train_the_same_teacher(cluster, prepared, environment):
    for parts, folder in prepared.items():
        call(*train(cluster, folder, parts), env=environment)
    assert len(losses(prepared[2])) == 3
    assert losses(prepared[2]) == pytest.approx(losses(prepared[1]), rel=2e-5)
    leaked = [path.name for host in (0, 1) for path in cluster.shm(host).iterdir() if "promptmm" in path.name or "kvdata" in path.name]
    assert leaked == []


def test_a_killed_graph_server_is_survived(cluster, prepared, environment, tmp_path):
    import shutil

    folder = tmp_path / "killed"
    shutil.copytree(prepared[2], folder)
    for leftover in ("teacher", "training", "stages/train-teacher.json"):
        path = folder / leftover
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    mine = {pid for host in (0, 1) for pid in cluster.pids(host)}
    process = subprocess.Popen(train(cluster, folder, 2), env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline, victims = time.monotonic() + SECONDS, []
    while len(victims) < 2 and time.monotonic() < deadline and process.poll() is None:
        victims = [p for p in graph_servers() if p.pid in {pid for host in (0, 1) for pid in cluster.pids(host)} - mine]
        time.sleep(0.1)
    assert len(victims) == 2
    victims[1].kill()
    output, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, output
    assert losses(folder) == pytest.approx(losses(prepared[2]), rel=2e-5)
    assert graph_servers() == [] or not {p.pid for p in graph_servers()} & {p.pid for p in victims}


def test_more_parts_than_hosts_is_refused(cluster, tmp_path, environment):
    for verb in ("prepare", "partition"):
        call(*PROMPTMM, verb, *SETTINGS, "graph.num_parts=3", f"run.dir={tmp_path}/three")
    done = subprocess.run(train(cluster, tmp_path / "three", 3), capture_output=True, text=True, timeout=SECONDS, env=environment)
    assert done.returncode == 2
    assert "graph.num_parts=3 needs 3 hosts" in done.stderr
