"""Reads a student's labels from their source: files that were written before, or a stream of blocks."""

from collections.abc import Iterator
from typing import Protocol

import pyarrow as pa
import torch

from ...core.artifact import open_artifact
from ...core.errors import InputError
from ...core.objectives import Labels
from ...core.sampling import rank_slice
from ..artifacts.teacher import revision_digest, revision_url
from ..messages import LabelJob
from ..prefetch import Prefetched
from .blocks import block_name, labels_url, table_to_labels

BLOCKS_AHEAD = 2
EARLIER = {"examples": "interactions"}  # what the manifests of earlier versions leave out


class LabelSource(Protocol):
    """Gives one worker its labels, step by step."""

    def order_epoch(self, epoch: int) -> int:
        """Returns the epoch whose order of examples, and whose labels, the given epoch of training uses."""

    def epoch(self, epoch: int) -> Iterator[tuple[int, Labels]]:
        """Yields every step's number and this worker's labels of the step; epochs have to be asked for in order."""

    def close(self) -> None:
        """Ends whatever makes the labels."""


class MaterialisedLabels:
    """Reads labels from labels/rev-<r>/, memory-mapped; epochs beyond the written ones use these again in turn.

    Args:
        run_url: The run's folder.
        job: The job of this worker's share of the labels.
        modalities: Names of the teacher's modalities, in its order.

    Raises:
        InputError: the labels are missing or damaged, or were made with other settings.
    """

    def __init__(self, run_url: str, job: LabelJob, modalities: list[str]) -> None:
        url = labels_url(run_url, job.revision)
        self.folder, self.manifest = open_artifact(url, "labels", job.cache_dir)
        self.job, self.modalities = job, modalities
        expected_facts = {"revision": job.revision, "batch_size": job.batch_size, "num_examples": job.num_examples, **job.candidates()}
        for name, expected in expected_facts.items():
            made_with = self.manifest.get(name, EARLIER.get(name))
            if made_with != expected:
                raise InputError(f"{url}: {name} is {made_with}, {expected} expected; run label again")
        if "teacher" in self.manifest and self.manifest["teacher"] != revision_digest(job.teacher_url, job.revision):
            raise InputError(
                f"{url}: these labels are of another teacher than {revision_url(job.teacher_url, job.revision)}, whose vectors the student "
                "would learn from beside them; make them again with run.redo=label"
            )

    def order_epoch(self, epoch: int) -> int:
        """See `LabelSource`."""
        return epoch % int(self.manifest["epochs"])

    def epoch(self, epoch: int) -> Iterator[tuple[int, Labels]]:
        """See `LabelSource`."""
        whole = self.job.of_whole_steps(self.manifest["steps_a_block"])
        source, step = self.order_epoch(epoch), 0
        for block in range(whole.num_blocks):
            with pa.memory_map(str(self.folder / block_name(source, block))) as file:
                labels = table_to_labels(pa.ipc.open_file(file).read_all(), self.modalities, self.job.revision, source, block)
            start = 0
            for size in whole.step_sizes(block):
                share = rank_slice(size, self.job.rank, self.job.world_size)
                yield step, labels.slice(slice(start + share.start, start + share.stop))
                start, step = start + size, step + 1

    def close(self) -> None:
        """Does nothing: nothing makes labels meanwhile."""


class StreamedLabels:
    """Takes this worker's share of every step from a stream of blocks over all remaining epochs.

    Args:
        job: The job of this worker's share of the labels.
        modalities: Names of the teacher's modalities, in its order.
        blocks: The blocks in order, without those that hold no row of this share.
        timeout: Longest wait for a block, seconds.
        what: Names a block and what makes it, for the message where a block does not come.
    """

    def __init__(self, job: LabelJob, modalities: list[str], blocks: Iterator[pa.Table], timeout: float, what: str) -> None:
        self.job, self.modalities = job, modalities
        self._blocks: Prefetched[pa.Table] = Prefetched(blocks, BLOCKS_AHEAD, timeout, what)

    def order_epoch(self, epoch: int) -> int:
        """See `LabelSource`."""
        return epoch

    def epoch(self, epoch: int) -> Iterator[tuple[int, Labels]]:
        """See `LabelSource`."""
        step = 0
        for block in range(self.job.num_blocks):
            sizes = self.job.step_sizes(block)
            labels = self._next(epoch, block) if any(sizes) else self._nothing()
            start = 0
            for size in sizes:
                yield step, labels.slice(slice(start, start + size))
                start, step = start + size, step + 1

    def _next(self, epoch: int, block: int) -> Labels:
        return table_to_labels(next(self._blocks), self.modalities, self.job.revision, epoch, block)

    def _nothing(self) -> Labels:
        none, width = torch.zeros(0, dtype=torch.int64), self.job.width
        return Labels(none, none.reshape(0, width), torch.zeros(0, width), torch.zeros(len(self.modalities), 0, width))

    def close(self) -> None:
        """Ends the stream and its labelers."""
        self._blocks.close()
