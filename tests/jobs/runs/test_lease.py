"""One command at a time works in a run's folder: real processes, killed and stopped, on local folders and on object storage."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import fsspec
import promptmm.jobs.runs.lease as leases
import pytest
from promptmm.core.errors import InputError, RunError
from promptmm.jobs.runs.lease import lease

HOLD = """
import sys, time
import promptmm.jobs.runs.lease as leases
leases.RENEW_SECONDS = 0.1
with leases.lease(sys.argv[1], "train-teacher"):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


@contextmanager
def holder(folder: str, seconds: float = 60):
    process = subprocess.Popen([sys.executable, "-c", HOLD, folder, str(seconds)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def quick(monkeypatch):
    """Short times, so that nobody watches for 45 seconds."""
    monkeypatch.setattr(leases, "ENDING_SECONDS", 0.3)
    monkeypatch.setattr(leases, "RENEW_SECONDS", 0.1)
    monkeypatch.setattr(leases, "WATCH_SECONDS", 2.0)
    monkeypatch.setattr(leases, "LOOK_SECONDS", 0.1)


@pytest.fixture(params=["folder", "object storage"])
def run_dir(request, tmp_path, quick, monkeypatch):
    if request.param == "folder":
        yield str(tmp_path / "run")
        return
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    endpoint = f"http://127.0.0.1:{server.get_host_and_port()[1]}"
    for name, value in {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "FSSPEC_S3_ENDPOINT_URL": endpoint}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": endpoint})
    fsspec.filesystem("s3").mkdir(tmp_path.name.replace("_", "-"))
    yield f"s3://{tmp_path.name.replace('_', '-')}/run"
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    server.stop()


def file_of(run_dir: str):
    return fsspec.core.url_to_fs(f"{run_dir}/{leases.FILE}")


def is_held(run_dir: str) -> bool:
    fs, path = file_of(run_dir)
    fs.invalidate_cache()
    return fs.exists(path)


def test_a_second_command_is_refused_with_the_holder_named(run_dir):
    with holder(run_dir) as first:
        with pytest.raises(InputError, match=f"promptmm train-teacher .process {first.pid} on {socket.gethostname()}, since 20"):
            with lease(run_dir, "distill"):
                pass
        assert is_held(run_dir)


def test_a_holder_that_ended_leaves_nothing(run_dir):
    with holder(run_dir, 0.1) as first:
        assert first.wait(30) == 0
        assert not is_held(run_dir)
    with lease(run_dir, "distill"):
        assert is_held(run_dir)
    assert not is_held(run_dir)


def test_an_error_gives_the_lease_back(run_dir):
    with pytest.raises(ValueError, match="wrong"):
        with lease(run_dir, "distill"):
            raise ValueError("wrong")
    assert not is_held(run_dir)


def test_a_killed_holder_is_taken_over(run_dir):
    with holder(run_dir) as first:
        first.kill()
        first.wait()
        with lease(run_dir, "distill"):
            fs, path = file_of(run_dir)
            assert json.loads(fs.cat_file(path))["pid"] == os.getpid()


def test_of_commands_that_start_at_once_one_works(run_dir):
    command = [sys.executable, "-c", HOLD, run_dir, "300"]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    deadline = time.monotonic() + 120
    while sum(process.poll() is not None for process in processes) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1)
    ended = [process for process in processes if process.poll() is not None]
    try:
        assert len(ended) == 3
        assert all("works in this folder" in process.stderr.read() for process in ended)
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.mark.parametrize("run_dir", ["object storage"], indirect=True)
def test_a_holder_elsewhere_that_was_not_heard_of_is_taken_over(run_dir, capsys):
    fs, path = file_of(run_dir)
    fs.pipe_file(path, json.dumps({"command": "distill", "host": "elsewhere", "pid": 1, "token": "x", "renewed": 3}).encode())
    started = time.monotonic()
    with lease(run_dir, "distill"):
        assert time.monotonic() - started >= leases.WATCH_SECONDS


@pytest.mark.parametrize("run_dir", ["object storage"], indirect=True)
def test_a_holder_that_lost_its_lease_ends(run_dir):
    fs, path = file_of(run_dir)

    def work() -> None:
        with lease(run_dir, "distill"):
            fs.pipe_file(path, json.dumps({"host": "elsewhere", "token": "x", "renewed": 0}).encode())
            time.sleep(30)

    started, handler = time.monotonic(), signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with pytest.raises(RunError, match="another command has taken this folder over"):
            work()
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert time.monotonic() - started < 20
    assert json.loads(fs.cat_file(path))["host"] == "elsewhere"


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\x00"])
def test_a_damaged_lease_that_nobody_holds_is_no_obstacle(run_dir, content):
    fs, path = file_of(run_dir)
    fs.makedirs(path.rpartition("/")[0], exist_ok=True)
    fs.pipe_file(path, content)
    with lease(run_dir, "distill"):
        pass


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"distill cannot write there \(Not a directory\); name a folder"):
        with lease(str(tmp_path / "file" / "run"), "distill"):
            pass


def test_a_file_system_without_locks_has_the_lease_of_object_storage(tmp_path, quick, monkeypatch):
    """No such file system can be mounted here: the system's answer is replaced."""

    def no_locks(*given) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(leases.fcntl, "flock", no_locks)
    run_dir, started = str(tmp_path / "run"), time.monotonic()
    with lease(run_dir, "distill"):
        assert time.monotonic() - started < leases.WATCH_SECONDS, "it took its own empty file for somebody's lease"
        assert json.loads((tmp_path / "run" / leases.FILE).read_text())["pid"] == os.getpid()
    assert not is_held(run_dir)


def test_a_refused_command_leaves_no_folder(tmp_path):
    with pytest.raises(InputError, match="wrong"):
        with lease(str(tmp_path / "run"), "distill"):
            raise InputError("wrong")
    assert not Path(tmp_path / "run").exists()
