"""What killed commands left aside is removed by the next one, and nothing else."""

import os
import subprocess
import sys

import pytest
from promptmm.jobs.runs.lease import lease
from promptmm.jobs.runs.leftovers import remove_leftovers
from promptmm.jobs.settings import load_settings
from promptmm.jobs.verbs import run_verb

KILLED = """
import os, sys
from promptmm.core.artifact import write_artifact
from promptmm.core.storage import staged_file
with staged_file(sys.argv[1] + "/labels/rev-0/x.json") as path:
    path.write_text("half")
    with write_artifact(sys.argv[1] + "/graph", "graph", {}) as folder:
        (folder / "large").write_text("half")
        os.kill(os.getpid(), 9)
"""


@pytest.fixture
def killed(tmp_path):
    """A run's folder in which a process was killed while it wrote a file and an artifact."""
    (tmp_path / "training" / "ray" / "workers-1").mkdir(parents=True)
    (tmp_path / ".hidden.tmp").write_text("the user's own")
    (tmp_path / "kept.old").write_text("the user's own")
    assert subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False).returncode == -9
    return tmp_path


def test_leftovers_are_removed_and_nothing_else(killed):
    assert remove_leftovers(str(killed)) == 2
    assert sorted(str(path.relative_to(killed)) for path in killed.rglob("*")) == [
        ".hidden.tmp", "kept.old", "labels", "labels/rev-0", "training",
    ]  # fmt: skip
    assert remove_leftovers(str(killed)) == 0


def test_a_run_inside_the_folder_that_another_command_works_in_is_left_alone(tmp_path):
    aside = tmp_path / "refit" / ".graph.01234567.tmp"
    aside.mkdir(parents=True)
    with lease(str(tmp_path / "refit"), "refit"):
        assert remove_leftovers(str(tmp_path)) == 0
        assert aside.exists()
    assert remove_leftovers(str(tmp_path)) == 1


def test_every_command_that_writes_removes_them(killed):
    words = ["source.synthetic_num_users=60", "source.synthetic_num_items=50", "source.synthetic_interactions_per_user=12"]
    run_verb("prepare", load_settings("demo", [f"run.dir={killed}", *words]))
    assert not [name for name in os.listdir(killed) if name.startswith(".graph")]


def test_object_storage_has_none():
    assert remove_leftovers("s3://bucket/run") == 0
