"""What the tests of whole experiments share: a cluster, and recipes over the tiny catalog."""

from pathlib import Path

import pytest
import yaml
from promptmm.distributed.config import ClusterConfig
from promptmm.distributed.execution.session import ray_session

from ..conftest import TINY


@pytest.fixture(scope="module")
def ray_cluster():
    """One embedded cluster for the experiments of a module."""
    with ray_session(ClusterConfig(), num_cpus=2):
        yield


@pytest.fixture(scope="module")
def recipe(request, tmp_path_factory):
    """Writes the module's EXPERIMENT with some keys changed, and its base recipe; returns its path."""
    folder = tmp_path_factory.mktemp("recipes")
    (folder / "base.yaml").write_text(TINY)

    def write(name: str = "experiment", **keys) -> Path:
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump({"recipe": "base.yaml", **request.module.EXPERIMENT, **keys}, sort_keys=False))
        return path

    return write
