"""Scores candidate lists with the frozen teacher, a block at a time."""

import hashlib
from collections.abc import Iterator

import pyarrow as pa
import torch

from ...core.artifact import publish_manifest
from ...core.objectives import CandidateRequest, Labels, candidate_lists
from ...core.sampling import UnseenItems, check_unseen
from ...core.storage import join, remove, write_bytes
from ...core.train_pairs import TrainPairs
from ...graph_store.dataset import Dataset
from ..messages import LabelJob
from .blocks import block_name, labels_to_table, labels_url
from .rankings import open_rankings
from .teacher_scores import TeacherScores

BlockFacts = dict[str, str | int]


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

    def labels(self, epoch: int, block: int) -> Labels:
        """Computes the labels of a block, for the job's share of its steps; scores are float32."""
        job = self.job
        steps = [self.pairs.at(epoch, job.share_of(step)) for step in job.steps_of(block)]
        examples, users, positives = (torch.cat(parts) for parts in zip(*steps))
        distinct, rows = torch.unique(users, return_inverse=True)
        unseen, ranking = UnseenItems(self.train.select(distinct), distinct), self.ranked[distinct] if self.ranked is not None else None
        request = CandidateRequest(rows, positives, examples, unseen, job.seed, epoch, ranking, rows)
        return self.scores.labels(users, candidate_lists(job.config, request))

    def table(self, epoch: int, block: int) -> pa.Table:
        """Returns a block as an Arrow table."""
        return labels_to_table(self.labels(epoch, block), self.scores.modalities, self.job.revision, epoch, block)

    def write_block(self, url: str, epoch: int, block: int) -> BlockFacts:
        """Writes a block as an Arrow IPC file below `url`; returns its name, size, checksum and number of rows."""
        sink, table = pa.BufferOutputStream(), self.table(epoch, block)
        with pa.ipc.new_file(sink, table.schema) as writer:
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


def publish_labels(job: LabelJob, url: str, epochs: int, written: list[BlockFacts], metadata: dict) -> dict:
    """Completes labels/rev-<r>/ by its manifest.

    Args:
        job: The job that says what was labelled.
        url: The labels' folder.
        epochs: The number of epochs for which there are labels.
        written: The results of `write_block` for all blocks.
        metadata: Further facts for the manifest.

    Returns:
        The manifest's facts, and the total of `bytes` and `rows`.
    """
    files = {str(row["name"]): {"bytes": row["bytes"], "sha256": row["sha256"]} for row in written}
    facts = {
        "revision": job.revision,
        "epochs": epochs,
        "num_examples": job.num_examples,
        "batch_size": job.batch_size,
        "steps_a_block": job.steps_a_block,
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
