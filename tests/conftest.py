"""What all tests share: the environment of worker processes, and one Ray cluster for a session."""

import contextlib
import ctypes
import os
import subprocess

import pytest

CLONE_NEWNS = 0x00020000  # of <sched.h>
LONGEST = (
    "test_multi_host",
    "verbs/test_pipeline",
    "execution/test_faults",
    "test_job_submit",
    "execution/test_executors",
    "verbs/test_own_kinds",
    "planning/test_plan_of_runs",
    "tasks/test_student_regimes",
    "sampled/test_checkpoints",
)

# Before Ray or torch are imported anywhere. Tests run beside each other: threads that spin while they wait would take the cores away.
os.environ.setdefault("GOMP_SPINCOUNT", "0")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("DGLBACKEND", "pytorch")
os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")


def pytest_configure() -> None:
    """Gives each of several test processes a /dev/shm of its own, since tests look at what is left there.

    Without root's rights they share it, and such a test may see what another process is working with.
    """
    if "PYTEST_XDIST_WORKER" in os.environ and os.geteuid() == 0 and ctypes.CDLL(None).unshare(CLONE_NEWNS) == 0:
        with contextlib.suppress(subprocess.CalledProcessError):
            subprocess.run(["mount", "--make-rprivate", "/"], check=True)
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8g,mode=1777", "tmpfs", "/dev/shm"], check=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest files first, so that several test processes end together."""

    def place(item: pytest.Item) -> int:
        return next((number for number, part in enumerate(LONGEST) if part in item.nodeid), len(LONGEST))

    items.sort(key=place)


@pytest.fixture(scope="session")
def ray_cluster():
    """An embedded cluster that every `ray_session` of these tests joins."""
    import ray
    from promptmm.distributed.config import ClusterConfig
    from promptmm.distributed.execution.session import ray_session

    with ray_session(ClusterConfig(num_workers=2, num_labelers=2)):
        yield ray
