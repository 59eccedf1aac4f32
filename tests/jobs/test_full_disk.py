"""A disk that is full: every verb ends with a sentence, keeps what was complete, and completes when there is room again."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

VERBS = ["prepare", "partition", "train-teacher", "label", "distill", "evaluate", "export"]
WORDS = ["cluster.executor=local", "cluster.threads=1", "distill.num_top=2", "labels.block_rows=256"]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="module")
def states(tiny, tmp_path_factory):
    """A run's folder before each verb, and after the last."""
    from promptmm.jobs.cli import main

    folder = tmp_path_factory.mktemp("states")
    run = folder / "run"
    run.mkdir()
    for verb in VERBS:
        shutil.copytree(run, folder / verb)
        assert main([verb, str(tiny), *WORDS, f"run.dir={run}"]) == 0
    return folder


def fill(disk: Path, free: int) -> Path:
    """Fills a file system but for some bytes."""
    filler = disk / "filler"
    facts = os.statvfs(disk)
    with open(filler, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, facts.f_bavail * facts.f_frsize - free)
    return filler


def vectors(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(run.rglob("*.safetensors")) if "checkpoints" not in path.parts}


@pytest.mark.parametrize(
    "free", [0, pytest.param(16 << 10, marks=pytest.mark.slow), 80 << 10, pytest.param(300 << 10, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("verb", VERBS)
def test_a_full_disk(command, tiny, states, small_disk, verb, free):
    run = small_disk / "run"
    shutil.copytree(states / verb, run)
    before, filler = vectors(run), fill(small_disk, free)
    words = [verb, tiny, *WORDS, f"run.dir={run}"]
    ended = command(*words)
    if ended.code:
        assert re.search(r"no room left|No space left", ended.err), ended.err
        assert re.match(rf"promptmm: {run}/\S+", ended.err), ended.err
        assert ended.err.count("\n") == 1, ended.err
        assert before.items() <= vectors(run).items()
    else:
        assert free > 0, "it wrote nothing"
    filler.unlink()
    assert command(*words).code == 0
    after = states / VERBS[VERBS.index(verb) + 1] if verb != VERBS[-1] else states / "run"
    assert vectors(run) == vectors(after)
    assert not [path for path in run.rglob(".*") if path.name.endswith((".tmp", ".old"))]
