"""Reads a student's labels from their source: files that were written before, or a stream of blocks."""

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
import pyarrow as pa
import torch

from ...core.artifact import open_artifact
from ...core.objectives import Labels
from ..messages import LabelJob
from ..prefetch import Prefetched
from .blocks import LabelBlock, Ranked, block_name, by_step
from .files import check_labels, labels_url

BLOCKS_AHEAD = 2


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

    Blocks hold the examples of an epoch in its order, so that any size of batch reads them one after the other.

    Args:
        run_url: The run's folder.
        job: The job of this worker's share of the labels.
        modalities: Names of the teacher's modalities, in its order.
        ranked: Opens what returns items from their places in users' rankings; called where candidates are drawn from these.

    Raises:
        InputError: the labels are missing or damaged, or were made with other settings or by an earlier version.
    """

    def __init__(self, run_url: str, job: LabelJob, modalities: list[str], ranked: Callable[[], Ranked]) -> None:
        url = labels_url(run_url, job.revision)
        self.folder, self.manifest = open_artifact(url, "labels", job.cache_dir)
        self.job, self.modalities = job, modalities
        check_labels(url, self.manifest, job)
        self._ranked = ranked() if job.rankings is not None else None

    def order_epoch(self, epoch: int) -> int:
        """See `LabelSource`."""
        return epoch % int(self.manifest["epochs"])

    def epoch(self, epoch: int) -> Iterator[tuple[int, Labels]]:
        """See `LabelSource`."""
        source, size = self.order_epoch(epoch), self.manifest["batch_size"] * self.manifest["steps_a_block"]
        number, block = -1, None
        for steps in self.job.runs_of(range(self.job.num_steps)):
            places, parts = self.job.places_of(steps).numpy(), []
            for at in np.unique(places // size).tolist():
                if at != number:
                    number, block = at, self._open(source, at)
                assert block is not None
                parts.append(block[places[places // size == at] - at * size])
            yield from by_step(joined(parts) if parts else nothing(self.job.width, len(self.modalities)), steps, self.job)

    def _open(self, epoch: int, block: int) -> LabelBlock:
        with pa.memory_map(str(self.folder / block_name(epoch, block))) as file:
            table = pa.ipc.open_file(file).read_all()
        return LabelBlock(table, self.modalities, {"revision": self.job.revision, "epoch": epoch, "block": block}, self._ranked)

    def close(self) -> None:
        """Does nothing: nothing makes labels meanwhile."""


def joined(parts: list[Labels]) -> Labels:
    """Returns labels that follow one another as one; all have scores."""
    if len(parts) == 1:
        return parts[0]
    scores = [part.scores for part in parts if part.scores is not None]
    modal_scores = [part.modal_scores for part in parts if part.modal_scores is not None]
    users, candidates = torch.cat([part.users for part in parts]), torch.cat([part.candidates for part in parts])
    return Labels(users, candidates, torch.cat(scores), torch.cat(modal_scores, 1))


def nothing(width: int, num_modalities: int) -> Labels:
    """Returns the labels of no example, in lists of `width` items."""
    none = torch.zeros(0, dtype=torch.int64)
    return Labels(none, none.reshape(0, width), torch.zeros(0, width), torch.zeros(num_modalities, 0, width))


class StreamedLabels:
    """Takes this worker's share of every step from a stream of blocks over all remaining epochs.

    Args:
        job: The job of this worker's share of the labels.
        modalities: Names of the teacher's modalities, in its order.
        blocks: The blocks in order, without those that hold no row of this share.
        timeout: Longest wait for a block, seconds.
        what: Names a block and what makes it, for the message where a block does not come.
        ranked: Opens what returns items from their places in users' rankings; called where candidates are drawn from these.
    """

    def __init__(
        self, job: LabelJob, modalities: list[str], blocks: Iterator[pa.Table], timeout: float, what: str, ranked: Callable[[], Ranked]
    ) -> None:
        self.job, self.modalities = job, modalities
        self._ranked = ranked() if job.rankings is not None else None
        self._blocks: Prefetched[pa.Table] = Prefetched(blocks, BLOCKS_AHEAD, timeout, what)

    def order_epoch(self, epoch: int) -> int:
        """See `LabelSource`."""
        return epoch

    def epoch(self, epoch: int) -> Iterator[tuple[int, Labels]]:
        """See `LabelSource`."""
        for block in range(self.job.num_blocks):
            steps, start = self.job.steps_of(block), 0
            labels = self._next(epoch, block) if any(self.job.sizes_of(steps)) else None
            for run in self.job.runs_of(steps):
                end = start + sum(self.job.sizes_of(run))
                here = nothing(self.job.width, len(self.modalities)) if labels is None else labels[start:end]
                yield from by_step(here, run, self.job)
                start = end

    def _next(self, epoch: int, block: int) -> LabelBlock:
        numbers = {"revision": self.job.revision, "epoch": epoch, "block": block}
        return LabelBlock(next(self._blocks), self.modalities, numbers, self._ranked)

    def close(self) -> None:
        """Ends the stream and its labelers."""
        self._blocks.close()
