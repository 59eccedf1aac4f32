"""The executor of a run: Ray, or this process."""

import contextlib
from collections.abc import Iterator

from ...distributed.execution.base import Executor
from ...graph_store.dataset import Dataset
from ..settings import Settings


def require_packages(settings: Settings) -> None:
    """Imports what the executor of a run needs, so that a missing package is known before any work starts.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    if settings.cluster.executor == "ray":
        import ray  # noqa: F401


@contextlib.contextmanager
def open_executor(settings: Settings, dataset: Dataset, opened: Executor | None = None, expects_jobs: bool = False) -> Iterator[Executor]:
    """Opens what runs the jobs of a run, until the block ends.

    Args:
        settings: Of the run; `cluster.executor` decides.
        dataset: The run's.
        opened: An executor of the same run that is open already, and is taken then.
        expects_jobs: Whether workers may start before there is a job for them.
    """
    if opened is not None:
        yield opened
    elif settings.cluster.executor == "local":
        from ...distributed.execution.local import LocalExecutor

        yield LocalExecutor(settings.cluster, settings.dir, dataset)
    else:
        from ...distributed.execution.ray_executor import RayExecutor

        with RayExecutor(settings.cluster, settings.dir, expects_jobs, settings.labels.mode == "streamed") as executor:
            yield executor
