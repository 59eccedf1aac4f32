"""Label blocks: the frozen teacher's scores for candidate lists, made by a pool of Ray Data actors.

A block holds the examples of whole steps of one epoch, in the epoch's order. Columns: `user` int32, `candidates` int32 [1 + K] (the
positive first), `scores` and `scores.<modality>` float16 [1 + K] relative to the positive's (float16 loses large absolute values, and
every loss depends on differences only), and the constants `revision`, `epoch`, `block`. Scores travel, features never.

Either the blocks are written to labels/rev-<r>/ as Arrow IPC files and memory-mapped by students, or each student worker streams its own
shard of every step straight from the labelers: the same numbers, one execution over all epochs.
"""

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from ..core.config import DistillationConfig
from ..core.distillation import Labels, label
from ..core.errors import InputError
from ..core.graph import Csr
from ..core.ranking import top_k
from ..core.sampling import UnseenItems, candidate_lists, epoch_order, rank_slice
from ..core.storage import filesystem, is_local, join, open_artifact, publish_manifest, remove, write_bytes
from ..graph_store.dataset import Dataset, open_dataset
from .config import ClusterConfig
from .launch import start_progress, watching
from .prefetch import Prefetched
from .teacher_artifact import read_revision

FLOAT16_MAX = 65504.0
LINE_SECONDS = 15.0
BLOCKS_AHEAD = 2


@dataclass(frozen=True)
class LabelJob:
    """What a labeler needs to know.

    Attributes:
        dataset_url, teacher_url: Artifacts.
        revision: The prompt's revision.
        config: Candidates and list lengths.
        batch_size: The students' global batch.
        steps_a_block: Steps in a block.
        num_examples: Train interactions.
        seed: Seed of order and candidates.
        cache_dir: Folder for local copies.
        rank, world_size: The student worker whose shard of each step is labelled; (0, 1) labels whole steps.
        threads: torch threads of the labeler.
    """

    dataset_url: str
    teacher_url: str
    revision: int
    config: DistillationConfig
    batch_size: int
    steps_a_block: int
    num_examples: int
    seed: int
    cache_dir: str | None = None
    rank: int = 0
    world_size: int = 1
    threads: int = 1

    def candidates(self) -> dict:
        """What decides the candidate lists, for the manifest of materialised labels."""
        config = self.config
        return {"num_uniform": config.num_uniform, "num_top": config.num_top, "top_depth": config.top_depth, "seed": self.seed}

    @property
    def num_steps(self) -> int:
        """Steps of an epoch."""
        return -(-self.num_examples // self.batch_size)

    @property
    def num_blocks(self) -> int:
        """Blocks of an epoch."""
        return -(-self.num_steps // self.steps_a_block)

    def step_sizes(self, block: int) -> list[int]:
        """This shard's rows of every step of a block."""
        sizes = []
        for step in range(block * self.steps_a_block, min((block + 1) * self.steps_a_block, self.num_steps)):
            total = min(self.batch_size, self.num_examples - step * self.batch_size)
            mine = rank_slice(total, self.rank, self.world_size)
            sizes.append(mine.stop - mine.start)
        return sizes


def top_unseen(users: Tensor, items: Tensor, seen: Csr, train: Csr, depth: int) -> Tensor:
    """The teacher's best unseen items, int64 [rows, depth], best first.

    Args:
        users: The teacher's final vectors of some users [rows, d]; items: of all items.
        seen: Train items of those users.
        train: Train items of all users: the depth is at most what the busiest of them has left.
        depth: Length of the ranking.
    """
    depth = min(depth, train.num_columns - int(train.degrees.max()))
    if not users.shape[0]:  # a worker without a share of a small last batch
        return torch.zeros(0, depth, dtype=torch.int64, device=users.device)
    return torch.cat([ranked for _, _, ranked in top_k(users, items, depth, seen)])


class Labeler:
    """One label process: holds a revision's vectors and makes blocks; of a dataset that is open, or of the job's."""

    def __init__(self, job: LabelJob, dataset: Dataset | None = None) -> None:
        torch.set_num_threads(job.threads)
        self.job = job
        dataset = dataset or open_dataset(job.dataset_url, job.cache_dir)
        self.train = dataset.csr("train")
        self.users, self.items = self.train.rows, self.train.columns
        self.vectors = read_revision(job.teacher_url, job.revision, job.cache_dir).vectors
        self.unseen = UnseenItems(self.train)
        self.top = None
        if job.config.num_top:
            self.top = top_unseen(self.vectors.user, self.vectors.item, self.train, self.train, job.config.top_depth)

    def labels(self, epoch: int, block: int) -> Labels:
        """This shard's labels of a block, float32 scores."""
        job, rows = self.job, []
        for step in range(block * job.steps_a_block, min((block + 1) * job.steps_a_block, job.num_steps)):
            first = step * job.batch_size
            mine = rank_slice(min(job.batch_size, job.num_examples - first), job.rank, job.world_size)
            rows.append(epoch_order(job.num_examples, job.seed, epoch, slice(first + mine.start, first + mine.stop)))
        examples = torch.cat(rows)
        users, config = self.users[examples], job.config
        candidates = candidate_lists(
            users,
            self.items[examples],
            examples,
            self.unseen,
            config.num_uniform,
            self.top,
            config.num_top,
            job.seed,
            epoch,
        )
        return label(self.vectors, users, candidates)

    def table(self, epoch: int, block: int) -> pa.Table:
        """A block as an Arrow table."""
        return labels_to_table(self.labels(epoch, block), list(self.vectors.modal_item), self.job.revision, epoch, block)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Ray Data's entry: one row with `epoch` and `block` in, one block out."""
        return pa.concat_tables([self.table(row["epoch"], row["block"]) for row in batch.to_pylist()])


def labels_to_table(labels: Labels, modalities: list[str], revision: int, epoch: int, block: int) -> pa.Table:
    """The block's Arrow table.

    Raises:
        InputError: a relative score does not fit float16.
    """
    assert labels.scores is not None
    assert labels.modal_scores is not None
    width, count = labels.candidates.shape[1], len(labels)

    def lists(x: np.ndarray) -> pa.FixedSizeListArray:
        return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(x).reshape(-1)), width)

    def halves(name: str, x: Tensor) -> pa.FixedSizeListArray:
        largest = float(x.abs().max()) if count else 0.0
        if not largest <= FLOAT16_MAX:
            raise InputError(
                f"label block {block} of epoch {epoch}: {name} reach {largest:.3g}, float16 ends at {FLOAT16_MAX:.0f}; "
                "raise teacher.l2 or teacher.feature_decay, or lower the teacher's learning rates"
            )
        return lists(x.numpy().astype(np.float16))

    def constant(value: int) -> pa.Array:
        return pa.array(np.full(count, value, dtype=np.int32))

    columns = {
        "user": pa.array(labels.users.numpy().astype(np.int32)),
        "candidates": lists(labels.candidates.numpy().astype(np.int32)),
        "scores": halves("scores", labels.scores),
        **{f"scores.{m}": halves(f"scores of {m}", x) for m, x in zip(modalities, labels.modal_scores)},
        "revision": constant(revision),
        "epoch": constant(epoch),
        "block": constant(block),
    }
    return pa.table(columns)


def table_to_labels(table: pa.Table, modalities: list[str], revision: int, epoch: int, block: int) -> Labels:
    """The block's labels, zero-copy where the table is one chunk.

    Raises:
        InputError: the block is not of the revision, epoch and number that the student was told.
    """

    def column(name: str) -> np.ndarray:
        array = table[name].combine_chunks()
        if isinstance(array, pa.ChunkedArray):
            array = array.chunk(0)
        flat = array.flatten() if pa.types.is_fixed_size_list(array.type) else array
        values = flat.to_numpy(zero_copy_only=True)
        return values.reshape(len(array), -1) if pa.types.is_fixed_size_list(array.type) else values

    for name, expected in (("revision", revision), ("epoch", epoch), ("block", block)):
        found = column(name)
        if found.size and not (found[0] == found[-1] == expected):
            raise InputError(f"label block {block} of epoch {epoch}: {name} {found[0]} found, {expected} expected; run label again")

    def tensor(name: str) -> Tensor:
        values = column(name)
        return torch.from_numpy(values if values.flags.writeable else values.copy())

    scores = tensor("scores")
    modal = torch.stack([tensor(f"scores.{m}") for m in modalities]) if modalities else scores.new_zeros(0, *scores.shape)
    return Labels(tensor("user"), tensor("candidates"), scores, modal)


def _block_name(epoch: int, block: int) -> str:
    return f"epoch-{epoch:05d}/block-{block:05d}.arrow"


def labels_url(run_url: str, revision: int) -> str:
    """Where the materialised labels of a revision are."""
    return join(run_url, "labels", f"rev-{revision}")


def write_block(labeler: Labeler, url: str, epoch: int, block: int) -> dict:
    """Writes a block as an Arrow IPC file below `url`; returns its name, size, checksum and number of rows."""
    sink, table = pa.BufferOutputStream(), labeler.table(epoch, block)
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    data, name = sink.getvalue().to_pybytes(), _block_name(epoch, block)
    write_bytes(join(url, name), data)
    return {"name": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "rows": table.num_rows}


class LabelWriter(Labeler):
    """A labeler that writes its blocks below a URL and returns what `write_block` says of them."""

    def __init__(self, job: LabelJob, url: str, lines: Any) -> None:
        lines.start.remote()
        super().__init__(job)
        self.url = url

    def __call__(self, batch: pa.Table) -> pa.Table:
        return pa.Table.from_pylist([write_block(self, self.url, row["epoch"], row["block"]) for row in batch.to_pylist()])


def _blocks_of(job: LabelJob, epochs: range) -> Any:
    import ray.data

    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    # A shard may have no row in a very small block: it is not asked for, since Ray Data drops empty blocks.
    items = [{"epoch": epoch, "block": block} for epoch in epochs for block in range(job.num_blocks) if any(job.step_sizes(block))]
    return ray.data.from_items(items, override_num_blocks=len(items))


def materialise(job: LabelJob, run_url: str, epochs: int, cluster: ClusterConfig, metadata: dict) -> dict:
    """Writes labels/rev-<r>/ with a pool of label actors; returns the manifest's facts.

    Args:
        job: For whole steps (world size 1).
        epochs: Distinct epochs of labels.
        cluster: Size of the pool, and the longest wait for it.
        metadata: Further facts for the manifest.

    Raises:
        RunError: the cluster had no room for a labeler within `cluster.start_timeout`.
    """
    import ray.data

    url = labels_url(run_url, job.revision)
    remove(url)
    if not is_local(url):
        filesystem(url)  # a wrong URL fails here, before the work
    lines, written = start_progress(), []
    blocks = _blocks_of(job, range(epochs)).map_batches(
        LabelWriter, fn_constructor_args=(job, url, lines), batch_size=1, batch_format="pyarrow", num_cpus=1,
        compute=ray.data.ActorPoolStrategy(size=cluster.num_labelers),
    )  # fmt: skip
    said = started = time.monotonic()
    with watching(lines, cluster.start_timeout, f"{cluster.num_labelers} labelers of 1 CPU each"):
        for row in blocks.iter_rows():
            written.append(row)
            now, total = time.monotonic(), epochs * job.num_blocks
            if now - said >= LINE_SECONDS and len(written) < total:
                said, rate = now, len(written) / (now - started)
                print(f"[label] block {len(written)}/{total}, {rate:.1f} blocks/s, {(total - len(written)) / rate:.0f} s left", flush=True)
    return publish_labels(job, url, epochs, written, metadata)


def publish_labels(job: LabelJob, url: str, epochs: int, written: list[dict], metadata: dict) -> dict:
    """Completes labels/rev-<r>/ from what `write_block` said of every block; returns the manifest's facts, bytes and rows."""
    files = {row["name"]: {"bytes": row["bytes"], "sha256": row["sha256"]} for row in written}
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
    return {**facts, "bytes": sum(row["bytes"] for row in written), "rows": sum(row["rows"] for row in written)}


class MaterialisedLabels:
    """Reads labels/rev-<r>/: memory-mapped where the run's folder is local. Epochs beyond the written ones reuse them in turn."""

    def __init__(self, run_url: str, job: LabelJob, modalities: list[str]) -> None:
        self.folder, self.manifest = open_artifact(labels_url(run_url, job.revision), "labels", job.cache_dir)
        self.job, self.modalities = job, modalities
        expected_facts = {"batch_size": job.batch_size, "num_examples": job.num_examples, **job.candidates()}
        for name, expected in expected_facts.items():
            if self.manifest[name] != expected:
                raise InputError(f"{labels_url(run_url, job.revision)}: {name} {self.manifest[name]}, {expected} expected; run label again")

    def written_epoch(self, epoch: int) -> int:
        """Whose labels an epoch takes, in that one's order."""
        return epoch % self.manifest["epochs"]

    def epoch(self, epoch: int) -> Iterator[tuple[int, Labels]]:
        """(step, this worker's labels of it) for every step of an epoch."""
        whole = LabelJob(**{**self.job.__dict__, "rank": 0, "world_size": 1, "steps_a_block": self.manifest["steps_a_block"]})
        source, step = self.written_epoch(epoch), 0
        for block in range(whole.num_blocks):
            with pa.memory_map(str(self.folder / _block_name(source, block))) as file:
                labels = table_to_labels(pa.ipc.open_file(file).read_all(), self.modalities, self.job.revision, source, block)
            start = 0
            for size in whole.step_sizes(block):
                mine = rank_slice(size, self.job.rank, self.job.world_size)
                yield step, labels.slice(slice(start + mine.start, start + mine.stop))
                start, step = start + size, step + 1


class StreamedLabels:
    """This worker's shard of every step, straight from a pool of labelers through one Ray Data execution over all remaining epochs."""

    def __init__(self, job: LabelJob, modalities: list[str], epochs: range, cluster: ClusterConfig) -> None:
        import ray.data

        self.job, self.modalities = job, modalities
        self._blocks: Prefetched[pa.Table] | None = None
        if not epochs:  # a round that was finished before it was interrupted
            return
        stream = _blocks_of(job, epochs).map_batches(
            Labeler, fn_constructor_args=(job,), batch_size=1, batch_format="pyarrow", num_cpus=1,
            compute=ray.data.ActorPoolStrategy(size=cluster.num_labelers),
        )  # fmt: skip
        what = f"a block of labels from {cluster.num_labelers} labelers of 1 CPU each (cluster.start_timeout)"
        self._blocks = Prefetched(self._open(stream), BLOCKS_AHEAD, cluster.start_timeout, what)

    @staticmethod
    def _open(stream: Any) -> Iterator[pa.Table]:
        # batch_size=None keeps the labelers' blocks; the order is that of the work items (preserve_order).
        yield from stream.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)

    def epoch(self, epoch: int) -> Iterator[tuple[int, Labels]]:
        """(step, this worker's labels of it); epochs must be asked for in order."""
        step = 0
        for block in range(self.job.num_blocks):
            sizes = self.job.step_sizes(block)
            if any(sizes):
                assert self._blocks is not None, "epochs of the stream only"
                labels = table_to_labels(next(self._blocks), self.modalities, self.job.revision, epoch, block)
            else:
                labels = self._nothing()
            start = 0
            for size in sizes:
                yield step, labels.slice(slice(start, start + size))
                start, step = start + size, step + 1

    def _nothing(self) -> Labels:
        width = 1 + self.job.config.num_candidates
        none = torch.zeros(0, dtype=torch.int64)
        return Labels(none, none.reshape(0, width), torch.zeros(0, width), torch.zeros(len(self.modalities), 0, width))

    def close(self) -> None:
        """Ends the execution and its labelers."""
        if self._blocks is not None:
            self._blocks.close()
