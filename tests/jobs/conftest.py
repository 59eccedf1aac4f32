"""Running the command line: in this process, and as a process of its own whose traces can be looked for."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from promptmm.jobs.cli import main

PROMPTMM = str(Path(sys.executable).parent / "promptmm")
ENDING_SECONDS = 10.0  # for processes that were told to end: on a busy machine Ray's workers take a moment longer than the command
TINY = """
source: {format: synthetic, synthetic_num_users: 120, synthetic_num_items: 80, synthetic_interactions_per_user: 12}
teacher: {dim: 8, train: {epochs: 2, batch_size: 512}}
student: {dim: 8, train: {epochs: 2, batch_size: 512}}
labels: {epochs: 1}
"""


@pytest.fixture
def write_own_module(tmp_path, monkeypatch) -> Callable[[str], str]:
    """Writes a module of the user's into the current folder, which is a new one; returns the module's name."""

    def write(text: str) -> str:
        name = f"own_{tmp_path.name.replace('-', '_')}"
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", [*sys.path])
        return name

    return write


@dataclass(frozen=True)
class Ended:
    """What a command printed, and what it left behind.

    Attributes:
        processes: Command lines of processes that it started and that still run.
        segments: Shared-memory segments that appeared meanwhile and that no running process maps.
        files: What it left of its own in the temporary folder.
    """

    code: int
    out: str
    err: str
    processes: list[str] = field(default_factory=list)
    segments: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)


@pytest.fixture
def command(capsys, monkeypatch, tmp_path_factory) -> Iterator[Callable[..., Ended]]:
    """Runs `promptmm WORDS...` in this process."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("temporary")))  # the cache of remote artifacts
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}

    def run(*words: object) -> Ended:
        capsys.readouterr()
        code = main([str(word) for word in words])
        return Ended(code, *capsys.readouterr())

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def temporary() -> Iterator[Path]:
    """A short temporary folder (Ray's sockets have long names) for one module's processes."""
    folder = Path(tempfile.mkdtemp(prefix="pm-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def process(temporary, tmp_path_factory) -> Callable[..., Ended]:
    """Runs a command as a process with a deadline; by default `promptmm`. See `Ended` for what is looked at afterwards."""
    working_dir = tmp_path_factory.mktemp("working")

    def run(
        *words: object, program: tuple[str, ...] = (PROMPTMM,), timeout: float = 400, cwd: Path = working_dir, **environment: str
    ) -> Ended:
        mark = uuid.uuid4().hex
        segments = set(os.listdir("/dev/shm"))
        started = subprocess.Popen(
            [*program, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd,
            env={**os.environ, "TMPDIR": str(temporary), "PROMPTMM_TEST": mark, **environment},
        )  # fmt: skip
        try:
            out, err = started.communicate(timeout=timeout)
            psutil.wait_procs(marked(mark), timeout=ENDING_SECONDS)
            left = marked(mark)
            return Ended(
                started.returncode,
                out,
                err,
                [" ".join(p.cmdline()) for p in left],
                sorted(set(os.listdir("/dev/shm")) - segments - mapped()),
                sorted(p.name for p in temporary.iterdir() if p.name.startswith("promptmm-") and "cache" not in p.name),
            )
        finally:
            for leftover in [*marked(mark), started]:
                leftover.kill()
            started.wait(20)

    return run


def marked(mark: str) -> list[psutil.Process]:
    """Running processes whose environment carries the mark: whatever a command started, however far down."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get("PROMPTMM_TEST") == mark:
                found.append(process)
        except psutil.Error:
            continue
    return found


def mapped() -> set[str]:
    """Shared-memory segments that some running process maps."""
    names = set()
    for process in psutil.process_iter():
        try:
            names |= {Path(m.path).name for m in process.memory_maps() if m.path.startswith("/dev/shm/")}
        except (psutil.Error, OSError):
            continue
    return names


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """A recipe that trains in seconds."""
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(TINY)
    return path
