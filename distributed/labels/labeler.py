"""Scores candidate lists with the frozen teacher, a block at a time."""

import hashlib
from collections.abc import Iterator

import pyarrow as pa
import torch
from torch import Tensor

from ...core.artifact import publish_manifest
from ...core.objectives import CandidateRequest, Labels, candidate_lists, candidate_policy
from ...core.sampling import UnseenItems, check_unseen
from ...core.storage import join, remove, write_bytes
from ...core.train_pairs import TrainPairs
from ...graph_store.dataset import Dataset
from ..messages import LabelJob
from . import user_labels
from .blocks import block_name, labels_to_table
from .files import LabelFile, labels_url
from .rankings import num_ranges, open_rankings
from .teacher_scores import TeacherScores
from .user_labels import UserLabeler

LAYOUT = "blocks of examples, 2"  # of the files, in the manifest; earlier ones name none


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
        self.scores = TeacherScores(job.teacher_url, job.revision, lambda: self.train, job.cache_dir)
        self.ranked = open_rankings(job.rankings, dataset) if job.rankings is not None else None

    def _request(self, epoch: int, block: int) -> tuple[Tensor, CandidateRequest]:
        """Returns the users of a block's examples, int64 [n], and what asks for their candidates."""
        job = self.job
        steps = [self.pairs.at(epoch, job.share_of(step)) for step in job.steps_of(block)]
        examples, users, positives = (torch.cat(parts) for parts in zip(*steps))
        distinct, rows = torch.unique(users, return_inverse=True)
        unseen, ranking = UnseenItems(self.train.select(distinct), distinct), self.ranked[distinct] if self.ranked is not None else None
        return users, CandidateRequest(rows, positives, examples, unseen, job.seed, epoch, ranking, rows)

    def labels(self, epoch: int, block: int) -> Labels:
        """Computes the labels of a block, for the job's share of its steps; scores are float32."""
        users, request = self._request(epoch, block)
        return self.scores.labels(users, candidate_lists(self.job.config, request))

    def table(self, epoch: int, block: int) -> pa.Table:
        """Returns a block as an Arrow table."""
        job, (users, request) = self.job, self._request(epoch, block)
        labels = self.scores.labels(users, candidate_lists(job.config, request))
        policy, numbers = candidate_policy(job.config), {"revision": job.revision, "epoch": epoch, "block": block}
        places = policy.ranked_places(request)
        return labels_to_table(labels, self.scores.modalities, numbers, self.train.num_columns, job.scores, places, policy.depth)

    def write(self, url: str, work: dict[str, int]) -> LabelFile:
        """Writes the block `work["block"]` of an epoch, `work["epoch"]`, as an Arrow IPC file below `url`."""
        epoch, block = work["epoch"], work["block"]
        sink, table = pa.BufferOutputStream(), self.table(epoch, block)
        options = pa.ipc.IpcWriteOptions(compression=None if self.job.compression == "none" else self.job.compression)
        with pa.ipc.new_file(sink, table.schema, options=options) as writer:
            writer.write_table(table)
        data, name = sink.getvalue().to_pybytes(), block_name(epoch, block)
        write_bytes(join(url, name), data)
        return {"name": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "rows": table.num_rows}


def clear_labels(run_url: str, revision: int) -> str:
    """Removes the labels of a revision, their manifest first; returns the URL for new ones."""
    url = labels_url(run_url, revision)
    remove(join(url, "manifest.json"))
    remove(url)
    return url


def open_labeler(job: LabelJob, dataset: Dataset) -> "Labeler | UserLabeler":
    """Opens what makes the labels that a job asks for."""
    return UserLabeler(job, dataset) if job.by == "users" else Labeler(job, dataset)


def work_of(job: LabelJob, dataset: Dataset, epochs: range) -> list[dict[str, int]]:
    """Lists what labelers are asked for, in order: the ranges of users, or the blocks of some epochs.

    A shard may have no row in a very small block: it is not asked for, since Ray Data drops empty blocks.
    """
    if job.by == "users":
        return [{"range": number} for number in range(num_ranges(dataset.num_users))]
    return [{"epoch": epoch, "block": block} for epoch in epochs for block in range(job.num_blocks) if any(job.step_sizes(block))]


def publish_labels(job: LabelJob, url: str, epochs: int, written: list[LabelFile], metadata: dict) -> dict:
    """Completes labels/rev-<r>/ by its manifest.

    Args:
        job: The job that says what was labelled.
        url: The labels' folder.
        epochs: The number of epochs for which there are labels; labels by user are for any number.
        written: The results of `write` for all files.
        metadata: Further facts for the manifest.

    Returns:
        The manifest's facts, and the total of `bytes` and `rows`.
    """
    files = {str(row["name"]): {"bytes": row["bytes"], "sha256": row["sha256"]} for row in written}
    of_blocks = {
        "epochs": epochs, "num_examples": job.num_examples, "batch_size": job.batch_size, "steps_a_block": job.steps_a_block
    }  # fmt: skip
    facts = {
        "revision": job.revision,
        "layout": user_labels.LAYOUT if job.by == "users" else LAYOUT,
        "encoding": job.scores,
        **({} if job.by == "users" else of_blocks),
        **job.candidates(),
        **metadata,
    }
    publish_manifest(url, "labels", facts, files)
    return {**facts, "bytes": sum(int(row["bytes"]) for row in written), "rows": sum(int(row["rows"]) for row in written)}


def stream_here(job: LabelJob, dataset: Dataset, epochs: range) -> Iterator[pa.Table]:
    """Yields the blocks of some epochs in order, made in this process, for the job's share; leaves out blocks without a row of it."""
    labeler = Labeler(job, dataset)
    for epoch in epochs:
        for block in range(job.num_blocks):
            if any(job.step_sizes(block)):
                yield labeler.table(epoch, block)
