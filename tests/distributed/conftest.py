"""A tiny prepared run to copy."""

import shutil
from pathlib import Path

import pytest

TINY = [
    "source.synthetic_num_users=150",
    "source.synthetic_num_items=90",
    "source.synthetic_interactions_per_user=12",
    "teacher.dim=8",
    "teacher.hidden=[12]",
    "student.dim=8",
    "teacher.train.batch_size=256",
    "student.train.batch_size=256",
    "teacher.train.epochs=3",
    "student.train.epochs=3",
    "teacher.train.learning_rate=0.01",
    "student.train.learning_rate=0.01",
    "distill.num_uniform=4",
    "distill.num_top=2",
    "distill.list_weight=0.5",
    "distill.embedding_weight=0.5",
    "labels.epochs=3",
    "labels.block_rows=512",
    "evaluation.cutoffs=[5, 20]",
    "cluster.max_failures=2",
]


LOCAL = "cluster.executor=local"


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """A run folder after prepare and partition, and its overrides."""
    from promptmm.jobs.settings import load_settings
    from promptmm.jobs.verbs import run_verb

    folder = tmp_path_factory.mktemp("tiny") / "run"
    for verb in ("prepare", "partition"):
        run_verb(verb, load_settings(None, [*TINY, f"run.dir={folder}"]))
    return folder


@pytest.fixture
def fork_run(tiny_run, tmp_path):
    """Copies the prepared run (or another) under a new name."""

    def fork(name: str, source: Path = tiny_run) -> Path:
        target = tmp_path / name
        shutil.copytree(source, target)
        return target

    return fork


@pytest.fixture(scope="session")
def tiny_settings():
    """Settings of a tiny run in a folder, with further overrides."""
    from promptmm.jobs.settings import load_settings

    def build(folder: Path, *overrides: str):
        return load_settings(None, [*TINY, f"run.dir={folder}", *overrides])

    return build


@pytest.fixture(scope="session")
def taught_run(tiny_run, tiny_settings, tmp_path_factory):
    """A run folder after train-teacher and label, in this process."""
    from promptmm.jobs.verbs import run_verb

    folder = tmp_path_factory.mktemp("taught") / "run"
    shutil.copytree(tiny_run, folder)
    for verb in ("train-teacher", "label"):
        run_verb(verb, tiny_settings(folder, LOCAL))
    return folder
