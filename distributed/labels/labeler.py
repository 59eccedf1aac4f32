"""Scores candidate lists with the frozen teacher, a block at a time."""

import hashlib
from collections.abc import Iterator

import pyarrow as pa
import torch
from torch import Tensor

from ...core.objectives import CandidateRequest, Labels, candidate_policy, placed_lists
from ...core.sampling import UnseenItems, check_unseen
from ...core.sides import ITEMS
from ...core.storage import JsonObject, join, write_bytes
from ...core.train_pairs import TrainPairs
from ...graph_store.dataset import Dataset
from ..messages import LabelJob
from . import parts
from .blocks import block_name, labels_to_table
from .files import LAYOUTS, Work
from .rankings import num_ranges, open_rankings, rankings_digest
from .teacher_scores import scores_of
from .user_labels import UserLabeler, range_name


class Labeler:
    """Holds the teacher's vectors at one revision, and makes label blocks.

    Args:
        job: The job that says what to label.
        dataset: The run's dataset.

    Raises:
        InputError: candidates are drawn from the teacher's rankings, and these are not there.
    """

    def __init__(self, job: LabelJob, dataset: Dataset) -> None:
        self.job = job
        self.train = dataset.rows("train")
        check_unseen(self.train)
        self.pairs = TrainPairs.of(self.train, job.seed, job.examples)
        self.scores = scores_of(job, self.train)
        self.ranked = open_rankings(job.rankings, dataset, has_scores=True) if job.rankings is not None else None
        self.degrees = dataset.degrees("train", ITEMS) if candidate_policy(job.config).reads_degrees else None

    def _request(self, epoch: int, block: int) -> tuple[Tensor, CandidateRequest]:
        """Returns the users of a block's examples, int64 [n], and what asks for their candidates."""
        job = self.job
        examples, users, positives = self.pairs.at(epoch, job.places_of(job.steps_of(block)))  # at once, since each call has its costs
        distinct, rows = torch.unique(users, return_inverse=True)
        unseen, ranking = UnseenItems(self.train.select(distinct), distinct), self.ranked[distinct] if self.ranked is not None else None
        return users, CandidateRequest(rows, positives, examples, unseen, job.seed, epoch, ranking, rows, self.degrees)

    def labels(self, epoch: int, block: int) -> Labels:
        """Computes the labels of a block, for the job's share of its steps; scores are float32."""
        return self._labels(epoch, block)[0]

    def _labels(self, epoch: int, block: int) -> tuple[Labels, Tensor | None]:
        """Returns labels, and the places of the last candidates in their users' rankings, which have the scores of these."""
        users, request = self._request(epoch, block)
        lists, places = placed_lists(self.job.config, request)
        of_last = self.ranked.scores_at(users, places) if self.ranked is not None and places is not None else []
        return self.scores.labels(users, lists, of_last), places

    def table(self, epoch: int, block: int) -> pa.Table:
        """Returns a block as an Arrow table."""
        job, numbers = self.job, {"revision": self.job.revision, "epoch": epoch, "block": block}
        labels, places = self._labels(epoch, block)
        depth = candidate_policy(job.config).depth
        return labels_to_table(labels, self.scores.modalities, numbers, self.train.num_columns, job.scores, places, depth)

    def write(self, url: str, work: Work) -> None:
        """Writes the block `work["block"]` of an epoch, `work["epoch"]`, as an Arrow IPC file below `url`, and notes that it is made."""
        epoch, block = work["epoch"], work["block"]
        sink, table = pa.BufferOutputStream(), self.table(epoch, block)
        options = pa.ipc.IpcWriteOptions(compression=None if self.job.compression == "none" else self.job.compression)
        with pa.ipc.new_file(sink, table.schema, options=options) as writer:
            writer.write_table(table)
        data, name = sink.getvalue().to_pybytes(), block_name(epoch, block)
        write_bytes(join(url, name), data)
        parts.note(url, name, {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "rows": table.num_rows})


def file_name(work: Work) -> str:
    """Returns the name of the file that holds the labels of an item of work."""
    return range_name(work["range"]) if "range" in work else block_name(work["epoch"], work["block"])


def open_labeler(job: LabelJob, dataset: Dataset) -> "Labeler | UserLabeler":
    """Opens what makes the labels that a job asks for."""
    return UserLabeler(job, dataset) if job.by == "users" else Labeler(job, dataset)


def work_of(job: LabelJob, dataset: Dataset, epochs: range) -> list[Work]:
    """Lists what labelers are asked for, in order: the ranges of users, or the blocks of some epochs.

    A shard may have no row in a very small block: it is not asked for, since Ray Data drops empty blocks.
    """
    if job.by == "users":
        return [{"range": number} for number in range(num_ranges(dataset.num_users))]
    return [{"epoch": epoch, "block": block} for epoch in epochs for block in range(job.num_blocks) if any(job.step_sizes(block))]


def labels_left(job: LabelJob, url: str, work: list[Work], facts: JsonObject) -> list[Work]:
    """Lists the work of `work_of` that is still to be done: all of it, but for the files that an interrupted call has finished.

    Args:
        job: The job that says what to label.
        url: The labels' folder; labels that are there and complete, or were begun with other facts, are removed.
        work: All work.
        facts: The facts of `label_facts`.
    """
    parts.begin(url, {**facts, "compression": job.compression})
    return [item for item in work if not parts.is_made(url, file_name(item))]


def label_facts(job: LabelJob, epochs: int, metadata: JsonObject) -> JsonObject:
    """Returns what the manifest says of labels.

    Args:
        job: The job that says what is labelled.
        epochs: The number of epochs for which there are labels; labels by user are for any number.
        metadata: Further facts.
    """
    of_blocks = {
        "epochs": epochs,
        "num_examples": job.num_examples,
        "batch_size": job.batch_size,
        "steps_a_block": job.steps_a_block,
    }
    return {
        "revision": job.revision,
        "layout": LAYOUTS[job.by],
        "encoding": job.scores,
        **({} if job.by == "users" else of_blocks),
        **job.candidates(),
        **({} if job.rankings is None else {"rankings": rankings_digest(job.rankings)}),
        **metadata,
    }


def publish_labels(url: str, work: list[Work], facts: JsonObject) -> JsonObject:
    """Completes labels/rev-<r>/ by its manifest, when all files are written; returns the facts, and the totals of `bytes` and `rows`."""
    written = parts.publish(url, "labels", facts, map(file_name, work))
    return {**facts, "bytes": sum(int(each["bytes"]) for each in written), "rows": sum(int(each["rows"]) for each in written)}


def stream_here(job: LabelJob, dataset: Dataset, epochs: range) -> Iterator[pa.Table]:
    """Yields the blocks of some epochs in order, made in this process, for the job's share; leaves out blocks without a row of it."""
    labeler = Labeler(job, dataset)
    for work in work_of(job, dataset, epochs):
        yield labeler.table(work["epoch"], work["block"])
