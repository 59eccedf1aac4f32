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
from ..labels.labeler import Labeler, clear_labels, publish_labels
from ..labels.rankings import Ranker, publish_rankings, ranges_left
from ..messages import LabelJob, RankingJob
from ..progress import with_progress
from .lines import start_progress, watching

if TYPE_CHECKING:
    from ray.data import Dataset as RayDataset


class BlockActor:
    """A label process: makes the blocks that it is asked for, by epoch and number."""

    def __init__(self, job: LabelJob) -> None:
        torch.set_num_threads(job.threads)
        self.labeler = Labeler(job, open_dataset(job.dataset_url, job.cache_dir))

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Ray Data's entry: rows with `epoch` and `block` in, their labels out."""
        return pa.concat_tables([self.labeler.table(row["epoch"], row["block"]) for row in batch.to_pylist()])


class BlockWriter(BlockActor):
    """A label process that writes its blocks below a URL, and returns what `Labeler.write_block` says of them."""

    url: str

    def __init__(self, job: LabelJob, url: str, lines: ActorHandle) -> None:
        lines.start.remote()
        super().__init__(job)
        self.url = url

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Ray Data's entry: rows with `epoch` and `block` in, facts of the written blocks out."""
        rows = batch.to_pylist()
        return pa.Table.from_pylist([self.labeler.write_block(self.url, row["epoch"], row["block"]) for row in rows])


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
        ranked = through_pool([{"range": number} for number in left], RangeRanker, (job, lines), size)
        with watching(lines, cluster.start_timeout, f"{size} rankers of 1 CPU each"):
            for _ in with_progress(ranked.iter_rows(), "label", "user range", len(left)):
                pass
    publish_rankings(job, dataset)


def through_pool(items: list[dict[str, int]], actor: type, arguments: tuple, size: int, num_cpus: int = 1) -> "RayDataset":
    """Sends items, one at a time and in their order, through a pool of actors; Ray Data's own lines and bars stay off the terminal.

    Args:
        items: What the actors are asked for; at least one.
        actor: Their class.
        arguments: Of its constructor.
        size: Number of actors.
        num_cpus: CPUs of each.
    """
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    return ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        actor, fn_constructor_args=arguments, batch_size=1, batch_format="pyarrow", num_cpus=num_cpus,
        compute=ray.data.ActorPoolStrategy(size=size),
    )  # fmt: skip


def _asked(job: LabelJob, epochs: range) -> list[dict[str, int]]:
    """The blocks of some epochs, in order, as what the actors are asked for.

    A shard may have no row in a very small block: it is not asked for, since Ray Data drops empty blocks.
    """
    return [{"epoch": epoch, "block": block} for epoch in epochs for block in range(job.num_blocks) if any(job.step_sizes(block))]


def materialise(job: LabelJob, run_url: str, epochs: int, cluster: ClusterConfig, metadata: dict, lines: ActorHandle | None = None) -> dict:
    """Writes labels/rev-<r>/ with a pool of label actors; returns the manifest's facts with `bytes` and `rows`.

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
    url = clear_labels(run_url, job.revision)
    if not is_local(url):
        filesystem(url)  # a wrong URL fails here, before the work
    lines = lines or start_progress()
    blocks = through_pool(_asked(job, range(epochs)), BlockWriter, (job, url, lines), cluster.num_labelers)
    with watching(lines, cluster.start_timeout, f"{cluster.num_labelers} labelers of 1 CPU each"):
        written = list(with_progress(blocks.iter_rows(), "label", "block", epochs * job.num_blocks))
    return publish_labels(job, url, epochs, written, metadata)


def stream_blocks(job: LabelJob, epochs: range, cluster: ClusterConfig) -> Iterator[pa.Table]:
    """A shard's blocks of some epochs in order, through one Ray Data execution over all of them."""
    asked = _asked(job, epochs)
    if not asked:  # a round that was finished before it was interrupted
        return
    stream = through_pool(asked, BlockActor, (job,), cluster.num_labelers)
    # batch_size=None keeps the labelers' blocks; the order is that of the work items (preserve_order).
    yield from stream.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)
