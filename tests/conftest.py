"""What all tests share: the environment of worker processes, and one Ray cluster for a session."""

import os

import pytest

# Before Ray or torch are imported anywhere.
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("DGLBACKEND", "pytorch")
os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")


@pytest.fixture(scope="session")
def ray_cluster():
    """An embedded cluster that every `ray_session` of these tests joins."""
    import ray
    from promptmm.distributed.config import ClusterConfig
    from promptmm.distributed.execution.session import ray_session

    with ray_session(ClusterConfig(num_workers=2, num_labelers=2)):
        yield ray
