"""What a run with a Ray of its own listens on is reachable by nobody else."""

import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from promptmm.jobs.runs.isolation import isolate
from promptmm.jobs.settings import load_settings

LISTEN = "0A"
WORDS = ["demo", "source.synthetic_num_users=150", "source.synthetic_num_items=80", "source.synthetic_interactions_per_user=12"]
WORDS += ["teacher.dim=8", "teacher.train.epochs=3", "cluster.engine=sampled", "sampling.fan_outs=[3]", "cluster.threads=1"]

can_isolate = subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False).returncode == 0
pytestmark = pytest.mark.skipif(not can_isolate, reason="this system lets the tests have no network namespace")


def listeners(pid: int | str) -> dict[str, int]:
    """The listening TCP sockets of the network that a process is in: their ports by inode (/proc/PID/net/tcp)."""
    found = {}
    for name in ("tcp", "tcp6"):
        rows = [line.split() for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]]
        found |= {row[9]: int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == LISTEN}
    return found


def sockets_of(process: psutil.Process) -> set[str]:
    """Inodes of the sockets that a process has open."""
    found = set()
    for link in Path(f"/proc/{process.pid}/fd").iterdir():
        try:
            target = link.readlink().name
        except OSError:
            continue
        if target.startswith("socket:["):
            found.add(target[8:-1])
    return found


def run(folder: Path, *words: str) -> tuple[set[int], set[int]]:
    """Trains a teacher; returns the ports on which its processes listened in our network, and in theirs."""
    for verb in ("prepare", "partition"):
        subprocess.run([sys.executable, "-m", "promptmm.jobs.cli", verb, *WORDS, f"run.dir={folder}"], check=True)
    command = [sys.executable, "-m", "promptmm.jobs.cli", "train-teacher", *WORDS, *words, f"run.dir={folder}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    in_ours, in_theirs = set[int](), set[int]()
    while process.poll() is None:
        ours = listeners("self")
        for each in psutil.Process(process.pid).children(recursive=True):
            try:
                opened = sockets_of(each)
                theirs = {} if Path(f"/proc/{each.pid}/ns/net").readlink() == Path("/proc/self/ns/net").readlink() else listeners(each.pid)
            except (psutil.Error, OSError):
                continue
            in_ours |= {port for inode, port in ours.items() if inode in opened}
            in_theirs |= {port for inode, port in theirs.items() if inode in opened}
        for port in in_theirs - {*ours.values(), *listeners("self").values()}:  # another run's may have the same number
            with pytest.raises(OSError, match="refused"):
                socket.create_connection(("127.0.0.1", port), timeout=5)
        time.sleep(0.3)
    assert process.returncode == 0, process.stdout.read()
    return in_ours, in_theirs


@pytest.mark.whole
def test_nobody_else_reaches_what_a_run_listens_on(tmp_path):
    """Ray's processes, torch's store, DGL's servers: each of their ports is looked for in our network, and tried."""
    in_ours, in_theirs = run(tmp_path / "run")
    assert not in_ours
    assert len(in_theirs) > 5


@pytest.mark.slow
def test_without_a_private_network_the_ports_are_found(tmp_path):
    in_ours, in_theirs = run(tmp_path / "run", "cluster.private_network=false")
    assert len(in_ours) > 5
    assert not in_theirs


@pytest.fixture
def moves(monkeypatch):
    """Whether a command with some words would move; nothing moves."""
    monkeypatch.setattr("promptmm.jobs.runs.isolation.has_parent", lambda: True)
    monkeypatch.setattr("promptmm.jobs.runs.isolation.enter_private_network", lambda: True)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return lambda *words: isolate(load_settings("demo", list(words)))


@pytest.mark.parametrize(
    "word",
    [
        "run.dir=s3://bucket/run",
        "recommend.output=s3://bucket/lists",
        "cluster.executor=local",
        "cluster.address=auto",
        "cluster.private_network=false",
        "run.trackers=[promptmm.distributed.loop.trackers:TensorBoard]",
    ],
)
def test_a_run_that_may_need_a_network_keeps_it(moves, word):
    assert moves()
    assert moves("run.dir=file:///tmp/run")
    assert not moves(word)


def test_a_run_on_a_cluster_keeps_its_network(moves, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert not moves()


def test_a_program_that_runs_verbs_keeps_its_network(monkeypatch):
    monkeypatch.setattr("promptmm.jobs.runs.isolation.enter_private_network", lambda: pytest.fail("moved"))
    assert not isolate(load_settings("demo", []))
