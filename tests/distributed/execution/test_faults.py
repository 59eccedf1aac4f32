"""Killing processes changes the time taken, not the result; and nothing is left behind."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from promptmm.jobs.verbs import run_verb

DEADLINE = 240
# Enough epochs that a process can be killed in the middle.
LONG = ["teacher.train.epochs=40", "student.train.epochs=400", "teacher.train.patience=40", "student.train.patience=400"]
LONG += ["teacher.train.checkpoint_every=2", "student.train.checkpoint_every=2", "source.synthetic_num_users=150"]
LOCAL = "cluster.executor=local"


def start(verb: str, folder: Path, *more: str) -> subprocess.Popen:
    words = [sys.executable, "-m", "promptmm.jobs.cli", verb, str(folder / "config.yaml"), *LONG, *more, f"run.dir={folder}"]
    return subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # some runners of tests have it ignored
    )  # fmt: skip


def wait_for_epochs(folder: Path, stage: str, count: int, process: subprocess.Popen) -> None:
    metrics, deadline = folder / "training" / stage / "metrics.jsonl", time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        if metrics.exists() and len(metrics.read_text().splitlines()) >= count:
            return
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)
    raise AssertionError(f"no {count} epochs of {stage} within {DEADLINE} s")


def descendants(process: subprocess.Popen) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it ended in between, or waits to be reaped
        return ""


def train_workers(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [p for p in processes if "RayTrainWorker" in command_line(p)]


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=DEADLINE)
    return output


def assert_gone(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=30)
    assert not [line for line in map(command_line, alive) if line]


def shared_memory() -> set[str]:
    """The graph store's segments."""
    return {name for name in os.listdir("/dev/shm") if "promptmm" in name or "kvdata" in name}


def vectors(folder: Path, stage: str) -> bytes:
    file = "teacher/rev-0/item-00000.safetensors" if stage == "teacher" else "training/student/model/vectors.safetensors"
    return (folder / file).read_bytes()


@pytest.fixture(scope="module")
def undisturbed(tiny_run, tiny_settings, tmp_path_factory):
    """The long run without a failure, in this process: executors give the same bits."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    shutil.copytree(tiny_run, folder)
    for verb in ("train-teacher", "label", "distill"):
        run_verb(verb, tiny_settings(folder, *LONG, LOCAL))
    return folder


@pytest.mark.parametrize(
    ("engine", "name"),
    [
        pytest.param("full", "RayTrainWorker", marks=pytest.mark.slow),
        ("sampled", "RayTrainWorker"),
        pytest.param("sampled", "GraphService", marks=pytest.mark.slow),
        pytest.param("sampled", "GraphServer", marks=pytest.mark.slow),
        pytest.param("sampled", "server_process", marks=pytest.mark.slow),
    ],
)
def test_a_killed_process_of_training_changes_nothing(request, fork_run, tiny_settings, engine, name):
    """Bit for bit: weights and optimizer state; with blocks also the sharded rows and the neighbours drawn."""
    if engine == "full":
        more, whole = [], request.getfixturevalue("undisturbed")
    else:
        more, whole = ["cluster.engine=sampled", "sampling.fan_outs=[3]"], fork_run("whole")
        run_verb("train-teacher", tiny_settings(whole, *LONG, *more, LOCAL))
    folder, segments = fork_run("killed"), shared_memory()
    process = start("train-teacher", folder, *more)
    wait_for_epochs(folder, "teacher", 7, process)
    seen = descendants(process)
    next(each for each in seen if name in command_line(each)).kill()
    output = finish(process)
    assert process.returncode == 0, output
    assert "resuming after epoch" in output or name == "GraphService"  # which is missed only when it is asked something
    assert "starts again by itself" not in output
    assert vectors(folder, "teacher") == vectors(whole, "teacher")
    assert_gone(seen)
    assert shared_memory() <= segments


@pytest.mark.slow
def test_ctrl_c_and_the_same_command_again(ray_cluster, undisturbed, fork_run, tiny_settings):
    folder, segments = fork_run("interrupted"), shared_memory()
    process = start("train-teacher", folder)
    wait_for_epochs(folder, "teacher", 5, process)
    seen = descendants(process)
    process.send_signal(signal.SIGINT)
    output = finish(process)
    assert process.returncode == 130, output
    assert "goes on from the last checkpoint" in output
    assert_gone(seen)
    assert shared_memory() <= segments
    assert not (folder / "teacher").exists()
    run_verb("train-teacher", tiny_settings(folder, *LONG))
    assert vectors(folder, "teacher") == vectors(undisturbed, "teacher")


@pytest.mark.slow
def test_a_killed_student_worker_changes_nothing(undisturbed, fork_run):
    folder = fork_run("student", undisturbed)
    shutil.rmtree(folder / "training" / "student")
    (folder / "stages" / "distill.json").unlink()
    process = start("distill", folder, "cluster.executor=ray")  # the undisturbed run has saved that it was local
    wait_for_epochs(folder, "student", 7, process)
    train_workers(descendants(process))[0].kill()
    output = finish(process)
    assert process.returncode == 0, output
    assert vectors(folder, "student") == vectors(undisturbed, "student")


SESSION = """
import os, sys, time
from promptmm.distributed.config import ClusterConfig
from promptmm.distributed.execution.session import ray_session
from promptmm.distributed.parent import outlive, tell_parent

def command(words):
    with ray_session(ClusterConfig(), num_cpus=1):
        if os.path.exists(words[0]):
            return 0
        open(words[0], "w").close()
        tell_parent("begun")
        print("ready", flush=True)
        time.sleep(200)

sys.exit(outlive(command, sys.argv[1:]))
"""


def test_an_end_of_ray_is_said_and_the_command_starts_again(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", SESSION, str(tmp_path / "mark")], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert "ready\n" in iter(process.stdout.readline, "")
    seen = descendants(process)
    next(each for each in seen if "raylet/raylet" in command_line(each)).kill()
    output = finish(process)
    assert process.returncode == 0, output
    assert "promptmm: Ray's raylet process ended (signal 9, SIGKILL), and with it this command; the command starts again" in output
    assert_gone(seen)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("raylet/raylet", "Ray's raylet process ended (signal 9, SIGKILL)"),
        ("gcs/gcs_server", "Ray's gcs server process ended (signal 9, SIGKILL)"),
        ("dashboard/agent", "ended ("),
        ("jobs.cli", "the process of this command ended without a word (signal 9, SIGKILL)"),
    ],
)
def test_the_command_goes_on_by_itself_after_an_end_of_ray_or_of_its_own_process(undisturbed, fork_run, name, said):
    folder, segments = fork_run("ended"), shared_memory()
    process = start("train-teacher", folder)
    wait_for_epochs(folder, "teacher", 7, process)
    seen = descendants(process)
    next(each for each in seen if name in command_line(each)).kill()
    output = finish(process)
    assert process.returncode == 0, output
    assert said in output
    assert output.count("starts again by itself") == 1
    assert "resuming after epoch" in output
    assert vectors(folder, "teacher") == vectors(undisturbed, "teacher")
    assert_gone(seen)
    assert shared_memory() <= segments


def test_a_failure_leaves_nothing_running(fork_run):
    folder = fork_run("failing")
    damaged = folder / "graph" / "part0" / "features" / "visual.rows"
    damaged.write_bytes(b"x" * damaged.stat().st_size)
    process = start("train-teacher", folder)
    time.sleep(1)
    output = finish(process)
    assert process.returncode == 2, output
    assert "visual.rows: checksum does not match the manifest" in output
    assert not [p for p in psutil.process_iter() if str(folder) in command_line(p)]
