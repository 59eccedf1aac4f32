"""Rankings and labels from a pool of Ray Data actors; labels are materialised, or streamed straight to a student's worker."""

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pyarrow as pa
import ray.data
import torch
from ray.actor import ActorHandle

from ...core.storage import filesystem, is_local
from ...graph_store.dataset import open_dataset
from ..config import ClusterConfig
from ..labels.files import labels_url
from ..labels.labeler import Labeler, label_facts, labels_left, open_labeler, publish_labels, work_of
from ..labels.rankings import Ranker, publish_rankings, ranges_left
from ..labels.user_labels import UserLabeler
from ..messages import LabelJob, RankingJob
from ..progress import with_progress
from .lines import start_progress, watching

if TYPE_CHECKING:
    from ray.data import Dataset as RayDataset


class BlockActor:
    """A label process that streams: makes the blocks that it is asked for, by epoch and number."""

    def __init__(self, job: LabelJob) -> None:
        torch.set_num_threads(job.threads)
        self.labeler = Labeler(job, open_dataset(job.dataset_url, job.cache_dir))

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Ray Data's entry: rows with `epoch` and `block` in, their labels out."""
        return pa.concat_tables([self.labeler.table(row["epoch"], row["block"]) for row in batch.to_pylist()])


class LabelWriter:
    """A label process that writes files below a URL."""

    def __init__(self, job: LabelJob, url: str, lines: ActorHandle) -> None:
        lines.start.remote()
        torch.set_num_threads(job.threads)
        self.labeler: Labeler | UserLabeler = open_labeler(job, open_dataset(job.dataset_url, job.cache_dir))
        self.url: str = url

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Ray Data's entry: rows of `work_of` in, the same rows out when their files are written."""
        for work in batch.to_pylist():
            self.labeler.write(self.url, work)
        return batch


class RangeRanker:
    """A process that ranks ranges of users and writes their files."""

    def __init__(self, job: RankingJob, lines: ActorHandle) -> None:
        lines.start.remote()
        torch.set_num_threads(1)  # of the one CPU that it asks for
        self.ranker: Ranker = Ranker(job, open_dataset(job.dataset_url, job.cache_dir))

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Ray Data's entry: rows with `range` in, the same rows out when the ranges are written."""
        for number in batch["range"].to_pylist():
            self.ranker.write(number)
        return batch


def rank_users(job: RankingJob, cluster: ClusterConfig, lines: ActorHandle | None = None) -> None:
    """Makes the rankings of a revision with a pool of actors; goes on after the ranges that an interrupted call has finished.

    Args:
        job: What to rank.
        cluster: Size of the pool, and the longest wait for it.
        lines: The actor that carries lines to the driver; None: one of its own.

    Raises:
        RunError: the cluster had no room for an actor within `cluster.start_timeout`.
    """
    dataset, lines = open_dataset(job.dataset_url, job.cache_dir), lines or start_progress()
    left = ranges_left(job, dataset)
    if left:
        size = min(cluster.num_labelers, len(left))
        ranked = through_pool([{"range": number} for number in left], RangeRanker, (job, lines), size, num_gpus=cluster.gpus_per_labeler)
        with watching(lines, cluster.start_timeout, f"{size} rankers of {_resources(cluster)} each"):
            for _ in with_progress(ranked.iter_rows(), "label", "user range", len(left)):
                pass
    publish_rankings(job, dataset)


def _resources(cluster: ClusterConfig) -> str:
    """Says what a labeler or ranker asks the cluster for."""
    return "1 CPU" + (f" and {cluster.gpus_per_labeler:g} GPUs" if cluster.gpus_per_labeler else "")


def through_pool(
    items: list[dict[str, int]], actor: type, arguments: tuple, size: int, num_cpus: int = 1, num_gpus: float = 0
) -> "RayDataset":
    """Sends items, one at a time and in their order, through a pool of actors; Ray Data's own lines and bars stay off the terminal.

    Args:
        items: What the actors are asked for; at least one.
        actor: Their class.
        arguments: Of its constructor.
        size: Number of actors.
        num_cpus, num_gpus: CPUs and GPUs of each.
    """
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    return ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        actor, fn_constructor_args=arguments, batch_size=1, batch_format="pyarrow", num_cpus=num_cpus,
        num_gpus=num_gpus or None, compute=ray.data.ActorPoolStrategy(size=size),
    )  # fmt: skip


def materialise(job: LabelJob, run_url: str, epochs: int, cluster: ClusterConfig, metadata: dict, lines: ActorHandle | None = None) -> dict:
    """Writes labels/rev-<r>/ with a pool of label actors; goes on after the files that an interrupted call has finished.

    Returns the manifest's facts with `bytes` and `rows`.

    Args:
        job: Of whole steps.
        run_url: The run's folder.
        epochs: Distinct epochs of labels.
        cluster: Size of the pool, and the longest wait for it.
        metadata: Further facts for the manifest.
        lines: The actor that carries lines to the driver; None: one of its own.

    Raises:
        RunError: the cluster had no room for a labeler within `cluster.start_timeout`.
    """
    url, dataset = labels_url(run_url, job.revision), open_dataset(job.dataset_url, job.cache_dir)
    if not is_local(url):
        filesystem(url)  # a wrong URL fails here, before the work
    work, facts = work_of(job, dataset, range(epochs)), label_facts(job, epochs, metadata)
    left = labels_left(job, url, work, facts)
    if left:
        lines, size = lines or start_progress(), min(cluster.num_labelers, len(left))
        made = through_pool(left, LabelWriter, (job, url, lines), size, num_gpus=cluster.gpus_per_labeler)
        with watching(lines, cluster.start_timeout, f"{size} labelers of {_resources(cluster)} each"):
            for _ in with_progress(made.iter_rows(), "label", "user range" if job.by == "users" else "block", len(left)):
                pass
    return publish_labels(url, work, facts)


def stream_blocks(job: LabelJob, epochs: range, cluster: ClusterConfig) -> Iterator[pa.Table]:
    """A shard's blocks of some epochs in order, through one Ray Data execution over all of them."""
    asked = work_of(job, open_dataset(job.dataset_url, job.cache_dir), epochs)
    if not asked:  # a round that was finished before it was interrupted
        return
    stream = through_pool(asked, BlockActor, (job,), cluster.num_labelers, num_gpus=cluster.gpus_per_labeler)
    # batch_size=None keeps the labelers' blocks; the order is that of the work items (preserve_order).
    yield from stream.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)
