"""`ray job submit --working-dir . -- promptmm pipeline demo` against a local `ray start --head`, shortened by overrides."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

SECONDS = 400
START_SECONDS = 120
REPOSITORY = Path(__file__).resolve().parents[1]
SHORT = [
    "source.synthetic_num_users=150", "source.synthetic_num_items=90", "teacher.dim=8", "student.dim=8",
    "teacher.train.epochs=2", "student.train.epochs=2", "labels.epochs=1", "evaluation.cutoffs=[10, 20]",
]  # fmt: skip


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def head():
    """A head node on loopback ports of its own; ended by pid, since `ray stop` would end every Ray on this machine."""
    port, dashboard = free_port(), free_port()
    temporary = tempfile.mkdtemp(prefix="pmr")  # short: the path of a socket has at most 107 bytes
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # `promptmm` and `python` of the job's entrypoint
        "RAY_AUTH_MODE": "token",
        "RAY_ADDRESS": "",
    }
    words = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={port}", f"--dashboard-port={dashboard}",
             "--num-cpus=6", "--disable-usage-stats", f"--ray-client-server-port={free_port()}", f"--temp-dir={temporary}",
             f"--dashboard-agent-listen-port={free_port()}",  # another cluster on this machine may hold the default
             "--object-store-memory=200000000"]  # fmt: skip
    process = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    started = psutil.Process(process.pid)
    try:
        yield f"http://127.0.0.1:{dashboard}", environment, process
    finally:
        family = [*started.children(recursive=True), started] if started.is_running() and process.poll() is None else []
        process.send_signal(signal.SIGTERM)
        _, alive = psutil.wait_procs(family, timeout=20)
        for left in alive:
            left.kill()
        shutil.rmtree(temporary, ignore_errors=True)


def submit(head, source: Path, entry: list[str]) -> str:
    """Submits a job from a working directory, waits for it and returns its output."""
    address, environment, process = head
    job = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address", address, "--working-dir", str(source), "--", *entry]
    deadline = time.monotonic() + START_SECONDS
    while True:  # the dashboard answers before the head's agent is registered, which takes what the machine has left
        done = subprocess.run(job, env=environment, capture_output=True, text=True, timeout=SECONDS)
        accepted = "submitted successfully" in done.stdout + done.stderr
        if accepted or time.monotonic() > deadline:
            break
        assert process.poll() is None, process.stdout.read()
        time.sleep(2)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert "succeeded" in output
    return output


def test_ray_job_submit(head, tmp_path):
    folder, source = tmp_path / "run", tmp_path / "working"
    source.mkdir()
    output = submit(head, source, ["promptmm", "pipeline", "demo", f"run.dir={folder}", *SHORT])
    assert "| test recall@20 |" in output
    results = json.loads((folder / "results.json").read_text())
    assert results["student"]["test"]["recall@20"] > 0


@pytest.mark.slow
def test_an_experiment_as_a_job(head, tmp_path):
    """Its recipe travels with the working directory; its cells and its search run on the cluster."""
    folder, source = tmp_path / "run", tmp_path / "working"
    source.mkdir()
    models = {"teacher": {"stage": "teacher"}, "student": {"stage": "student", "teacher": "teacher"}}
    search = {"teacher": {"trials": 2, "space": {"teacher.l2": [0.001, 0.01]}}}
    experiment = {"recipe": "demo", "seeds": [0], "models": models, "search": search}
    (source / "mine.yaml").write_text(json.dumps(experiment))  # JSON is YAML
    output = submit(head, source, ["promptmm", "experiment", "mine.yaml", f"run.dir={folder}", *SHORT])
    assert "search of teacher: teacher.l2=" in output
    assert "4/4 cells" in output
    results = json.loads((folder / "results.json").read_text())
    assert set(results["models"]) == {"teacher", "student"}
