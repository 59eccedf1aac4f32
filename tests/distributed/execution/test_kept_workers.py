"""Workers that are kept between the jobs of a command fail, resume and end as workers of their own do."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.slow  # whole pipelines in processes of their own; test_faults kills workers in the default run
DEADLINE = 300
TINY = [
    "source.synthetic_num_users=150", "source.synthetic_num_items=90", "source.synthetic_interactions_per_user=12", "teacher.dim=8",
    "teacher.hidden=[12]", "student.dim=8", "teacher.train.batch_size=256", "student.train.batch_size=256", "teacher.train.epochs=3",
    "student.train.epochs=40", "student.train.patience=40", "student.train.checkpoint_every=2", "distill.num_uniform=4",
    "distill.num_top=2", "labels.epochs=3", "labels.block_rows=512", "evaluation.cutoffs=[5, 20]", "recommend.k=5",
]  # fmt: skip


def start(folder: Path, *more: str, verb: str = "pipeline") -> subprocess.Popen:
    words = [sys.executable, "-m", "promptmm.jobs.cli", verb, "demo", *TINY, *more, f"run.dir={folder}"]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)


def finish(process: subprocess.Popen) -> str:
    return process.communicate(timeout=DEADLINE)[0]


def wait_for_line(process: subprocess.Popen, text: str) -> list[str]:
    """Reads lines until one holds a text."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return lines
    raise AssertionError("".join(lines))


def descendants(process: subprocess.Popen) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it ended in between, or waits to be reaped
        return ""


def train_workers(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [p for p in processes if "RayTrainWorker" in command_line(p)]


def assert_gone(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=30)
    assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]


def student(folder: Path) -> bytes:
    return (folder / "training" / "student" / "model" / "vectors.safetensors").read_bytes()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A whole pipeline, which one group of workers trains."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    process = start(folder)
    output = finish(process)
    assert process.returncode == 0, output
    return folder


def untaught(undisturbed: Path, folder: Path) -> Path:
    """The run as it was before its labels were made."""
    shutil.copytree(undisturbed, folder)
    for name in ("labels", "training/student", "student"):
        shutil.rmtree(folder / name)
    for verb in ("label", "distill", "evaluate", "export"):
        (folder / "stages" / f"{verb}.json").unlink()
    return folder


def test_a_worker_killed_during_the_second_job_changes_nothing(undisturbed, tmp_path):
    process = start(tmp_path / "run")
    wait_for_line(process, "[student] epoch   7")
    train_workers(descendants(process))[0].kill()
    output = finish(process)
    assert process.returncode == 0, output
    assert "resuming after epoch" in output
    assert student(tmp_path / "run") == student(undisturbed)


def test_a_job_fails_and_the_next_command_resumes(undisturbed, tmp_path):
    """Without a restart left, the first death of a worker ends the run with its reason."""
    folder = untaught(undisturbed, tmp_path / "run")
    process = start(folder, "cluster.max_failures=0")
    wait_for_line(process, "[student] epoch   7")
    seen = descendants(process)
    train_workers(seen)[0].kill()
    output = finish(process)
    assert process.returncode == 1, output
    assert "promptmm: distill failed on its workers: " in output
    assert_gone(seen)
    process = start(folder)
    output = finish(process)
    assert process.returncode == 0, output
    assert "resuming after epoch" in output
    assert student(folder) == student(undisturbed)


def test_a_mistake_in_the_input_ends_the_run(undisturbed, tmp_path):
    folder = untaught(undisturbed, tmp_path / "run")
    process = start(folder)
    wait_for_line(process, "[label] done")
    seen = descendants(process)
    for block in (folder / "labels").rglob("*.arrow"):
        block.write_bytes(b"")
    output = finish(process)
    assert process.returncode == 2, output
    assert_gone(seen)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_an_interruption_between_two_jobs_leaves_nothing(undisturbed, tmp_path, number):
    """While labels are made the workers have no job."""
    folder = untaught(undisturbed, tmp_path / "run")
    (folder / "stages" / "train-teacher.json").unlink()
    shutil.rmtree(folder / "teacher")
    process = start(folder)
    wait_for_line(process, "[train-teacher] done")
    time.sleep(1)
    seen = descendants(process)
    assert train_workers(seen)
    process.send_signal(number)
    output = finish(process)
    assert process.returncode == 130, output
    assert_gone(seen)
