"""Makes the lists of many users with a pool of Ray Data actors."""

import pyarrow as pa
import torch
from ray.actor import ActorHandle

from ...core.lists import ListJob, PartWriter, parts_left, publish_lists
from ..config import ClusterConfig
from ..progress import saying_if_slow, show_here, with_progress
from .label_pool import through_pool
from .lines import start_progress, watching
from .session import RaySession


class ListMaker:
    """A process that makes parts of the lists, and writes their files."""

    def __init__(self, job: ListJob, threads: int, lines: ActorHandle) -> None:
        lines.start.remote()
        torch.set_num_threads(threads)
        self.writer: PartWriter = PartWriter(job)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Ray Data's entry: rows with `part` in, the numbers of their lists as `users` out when they are written."""
        return pa.table({"users": [self.writer.write(number) for number in batch["part"].to_pylist()]})


def make_parts_on_ray(job: ListJob, cluster: ClusterConfig) -> None:
    """Makes the parts that are left with `cluster.num_labelers` actors, and completes the lists.

    Args:
        job: The lists; its URLs are ones that every host reaches.
        cluster: Where Ray is or is started, size of the pool, threads of each actor, and the longest wait for it.

    Raises:
        RunError: the cluster had no room for an actor within `cluster.start_timeout`.
    """
    left = parts_left(job)
    if left:
        session = RaySession(cluster)
        session.start()
        try:
            with saying_if_slow(show_here, "[recommend] starting Ray"):
                session.wait()
            # On a cluster of this machine's own torch's threads bound the load, and not Ray's logical CPUs.
            _make(job, left, cluster, 1 if session.is_own else cluster.list_threads)
        finally:
            session.close()
    publish_lists(job)


def _make(job: ListJob, left: list[int], cluster: ClusterConfig, num_cpus: int) -> None:
    size, lines = min(cluster.num_labelers, len(left)), start_progress()
    made = through_pool([{"part": number} for number in left], ListMaker, (job, cluster.list_threads, lines), size, num_cpus)
    needs = f"{size} processes of cluster.threads={cluster.list_threads} CPUs each that make lists"
    with watching(lines, cluster.start_timeout, needs):
        total = sum(job.users_of(number) for number in left)
        for _ in with_progress(made.iter_rows(), "recommend", "user", total, lambda row: row["users"]):
            pass
