"""Two hosts, two parts of the graph: the same teacher as on one, with both engines, and a killed graph server is survived."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent))
import hosts as simulated

pytestmark = pytest.mark.skipif(simulated.why_not() is not None, reason=str(simulated.why_not()))

SECONDS = 300
SETTINGS = [
    "source.synthetic_num_users=150", "source.synthetic_num_items=90", "source.synthetic_interactions_per_user=12",
    "teacher.dim=8", "teacher.hidden=[12]", "teacher.train.batch_size=256", "teacher.train.epochs=3",
    "evaluation.cutoffs=[5, 20]", "graph.features=int8",
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
        temporary = tempfile.mkdtemp(prefix="pm", dir="/tmp")  # Ray's sockets have long names
        head = [*ray, "--head", "--port=6379", "--include-dashboard=false", f"--temp-dir={temporary}"]
        call(*hosts.command(0, [*head, f"--node-ip-address={hosts.address(0)}"]), env=environment)
        worker = [*ray, f"--address={hosts.address(0)}:6379", f"--node-ip-address={hosts.address(1)}"]
        call(*hosts.command(1, worker), env=environment)
        yield hosts
    shutil.rmtree(temporary, ignore_errors=True)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Two runs of the same catalog: one part and two."""
    folders = {parts: tmp_path_factory.mktemp("runs") / f"parts{parts}" for parts in (1, 2)}
    for parts, folder in folders.items():
        for verb in ("prepare", "partition"):
            call(*PROMPTMM, verb, *SETTINGS, f"graph.num_parts={parts}", f"run.dir={folder}")
    return folders


def train(hosts, folder: Path, parts: int, *more: str, workers: int = 2) -> list[str]:
    words = [*PROMPTMM, "train-teacher", *SETTINGS, f"run.dir={folder}", f"graph.num_parts={parts}", *more]
    return hosts.command(0, [*words, f"cluster.num_workers={workers}", f"cluster.address={hosts.address(0)}:6379"])


SAMPLED = ("cluster.engine=sampled", "sampling.fan_outs=[3, 2]", "teacher.train.checkpoint_every=1", "teacher.train.epochs=12")


def copy_of(folder: Path, target: Path) -> Path:
    """A run after `partition`, under another name."""
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("teacher", "training", "train-teacher.json"))
    return target


def graph_servers() -> list[psutil.Process]:
    return [p for p in psutil.process_iter(["cmdline"]) if "promptmm.graph_store.dgl.server_process" in (p.info["cmdline"] or [])]


@pytest.mark.slow  # the sampled engine does more of the same below
def test_two_parts_on_two_hosts_train_the_same_teacher(cluster, prepared, environment):
    for parts, folder in prepared.items():
        call(*train(cluster, folder, parts), env=environment)
    assert len(losses(prepared[2])) == 3
    assert losses(prepared[2]) == pytest.approx(losses(prepared[1]), rel=2e-5)
    assert leaked_segments(cluster) == []


@pytest.fixture(scope="module")
def sampled(cluster, prepared, environment, tmp_path_factory):
    """The sampled engine's teacher: two parts on two hosts with a worker each."""
    folder = copy_of(prepared[2], tmp_path_factory.mktemp("sampled") / "run")
    call(*train(cluster, folder, 2, *SAMPLED), env=environment)
    return folder


def test_the_sampled_engine_on_two_hosts_trains_as_on_one(cluster, prepared, sampled, environment, tmp_path):
    """Two parts and two workers, and one part in one process: the same neighbours are drawn, so the losses are the same to 2e-5."""
    alone = train_alone(prepared[1], tmp_path / "alone")
    assert len(losses(sampled)) == 12
    assert losses(sampled) == pytest.approx(losses(alone), rel=2e-5)
    one, two = (load_file(folder / "teacher" / "rev-0" / "item-00000.safetensors") for folder in (alone, sampled))
    assert set(one) == set(two)
    for name, x in one.items():
        torch.testing.assert_close(two[name], x, rtol=1e-3, atol=1e-4)
    rows = [json.loads(line) for line in (sampled / "training" / "teacher" / "metrics.jsonl").read_text().splitlines()]
    assert all(row["mib_sent"] > 0 for row in rows)
    assert leaked_segments(cluster) == []


@pytest.mark.slow
def test_one_worker_owns_the_rows_of_another_host(cluster, prepared, environment, tmp_path):
    """Two parts with one worker, who reaches the rows of the part whose host has none."""
    fewer = copy_of(prepared[2], tmp_path / "fewer")
    call(*train(cluster, fewer, 2, *SAMPLED, workers=1), env=environment)
    assert losses(fewer) == pytest.approx(losses(train_alone(prepared[1], tmp_path / "alone")), rel=2e-5)


def train_alone(folder: Path, target: Path) -> Path:
    """The same teacher of one part, trained in one process."""
    alone = copy_of(folder, target)
    call(*PROMPTMM, "train-teacher", *SETTINGS, *SAMPLED, f"run.dir={alone}", "cluster.executor=local")
    return alone


def leaked_segments(cluster) -> list[str]:
    return [path.name for host in (0, 1) for path in cluster.shm(host).iterdir() if "promptmm" in path.name or "kvdata" in path.name]


def test_a_killed_graph_server_is_survived(cluster, prepared, sampled, environment, tmp_path):
    """The sampled engine needs its servers in every step: a new set of servers and workers goes on from the last checkpoint."""
    folder = copy_of(prepared[2], tmp_path / "killed")
    mine = {pid for host in (0, 1) for pid in cluster.pids(host)}
    process = subprocess.Popen(
        train(cluster, folder, 2, *SAMPLED), env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    deadline = time.monotonic() + SECONDS
    metrics = folder / "training" / "teacher" / "metrics.jsonl"
    while time.monotonic() < deadline and process.poll() is None and not (metrics.exists() and len(losses(folder)) >= 3):
        time.sleep(0.02)
    victims = [p for p in graph_servers() if p.pid in {pid for host in (0, 1) for pid in cluster.pids(host)} - mine]
    assert len(victims) == 2
    victims[1].kill()
    output, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, output
    assert "resuming after epoch" in output
    assert losses(folder) == pytest.approx(losses(sampled), rel=2e-5)
    assert graph_servers() == [] or not {p.pid for p in graph_servers()} & {p.pid for p in victims}


@pytest.mark.slow
def test_more_parts_than_hosts_is_refused(cluster, tmp_path, environment):
    for verb in ("prepare", "partition"):
        call(*PROMPTMM, verb, *SETTINGS, "graph.num_parts=3", f"run.dir={tmp_path}/three")
    done = subprocess.run(train(cluster, tmp_path / "three", 3), capture_output=True, text=True, timeout=SECONDS, env=environment)
    assert done.returncode == 2
    assert "graph.num_parts=3 needs 3 hosts" in done.stderr
