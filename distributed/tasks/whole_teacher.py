"""Trains a teacher that every worker holds whole (stage 1): a baseline (docs/method.md 7) or a teacher of your own.

Features stay with the worker that owns the items. It maps them with the current weights, so that small rows travel and not features.
"""

from collections.abc import Callable, Generator
from typing import ClassVar

import torch
from torch import Tensor

from ...core.item_graph import ItemGraph, nearest_neighbours
from ...core.rows import RowTables
from ...core.sampling import rank_slice
from ...core.teacher import Triples, build_whole_teacher, teacher_kind
from ...core.vectors import TeacherVectors
from ..artifacts.output import Output
from ..artifacts.teacher import vectors_by_name, write_teacher
from ..engines.examples import Examples
from ..engines.learners import AdamLearner, Learner
from ..engines.view import REDUCED, FeatureInputs, View
from ..loop.selection import Selection
from ..messages import TeacherJob
from ..worker import Worker
from .base import Pair, RowsOf, Task
from .teacher import TeacherBatch, pair_batches


class WholeTeacherTask(Task[TeacherBatch]):
    """Trains the teacher's module with Adam.

    The parameters that act on features step with `teacher.reduction_learning_rate`, and all others with `teacher.train.learning_rate`.
    Item graphs are functions of the weights at the end of an epoch, so a checkpoint need not hold them.

    Args:
        job: The teacher's job.
        worker: This worker.
    """

    stage: ClassVar[str] = "teacher"
    learns_rows = False  # the module holds its own tables

    def __init__(self, job: TeacherJob, worker: Worker) -> None:
        config = job.config
        self.job, self.worker, self.config, self.seed = job, worker, config, job.seed
        self.train, self.dim, self.init_scale, self.user_balance = config.train, config.dim, config.init_scale, config.user_balance
        self.starts_spectrally, self.examples = config.start == "spectral", config.examples
        self.start_exponents = config.start_user_exponent, config.start_item_exponent
        self.kind = teacher_kind(config)
        self.num_hops, self.reads_features = self.kind.num_hops(config), self.kind.reads_features

    def build(self, dims: dict[str, int], counts: tuple[int, int], example: Callable[[], FeatureInputs]) -> None:
        self.dims = dims
        self.model = build_whole_teacher(self.config, *counts, dims, self.seed).to(self.worker.device)
        self._features = example().features

    @property
    def vector_dims(self) -> dict[str, int]:
        modal = {f"modal.{modality}": self.dim for modality in self.dims}
        return {"final": self.kind.final_dim(self.config, len(self.dims)), **modal}

    def initial_rows(self, own_ids: Pair) -> tuple[RowsOf, RowsOf]:
        def nothing(ids: Tensor) -> Tensor:
            return torch.zeros(ids.numel(), 0)

        return nothing, nothing

    def id_tables(self, tables: RowTables) -> RowTables:
        return self.model.collaborative.ids

    def learners(self, tables: RowTables | None) -> list[Learner]:
        of_features = self.model.feature_parameters()
        others = [p for p in self.model.parameters() if all(p is not of_feature for of_feature in of_features)]
        groups = [(others, self.config.train.learning_rate), (of_features, self.config.reduction_learning_rate)]
        return [AdamLearner(self.model, groups, self.worker, "model.")]

    def batches(self, examples: Examples, epoch: int, num_parts: int) -> Generator[TeacherBatch, None, None]:
        none = torch.zeros(0, dtype=torch.int64)
        return pair_batches(examples, epoch, num_parts, self.config, lambda step, part: (none, None))

    def reduce(self, inputs: FeatureInputs) -> dict[str, Tensor]:
        features = {m: x for m, x in inputs.features.items() if isinstance(x, Tensor)}
        return {REDUCED + m: x for m, x in self.model.reduce(features).items()}

    def terms(self, view: View, batch: TeacherBatch) -> dict[str, Tensor]:
        share = batch.size / self.worker.world_size
        triples = Triples(batch.users, batch.positives, batch.negatives, share, batch.weights, compared=batch.compared)
        return self.model.loss(self._all_vectors(view), triples)

    def _all_vectors(self, view: View) -> TeacherVectors:
        return self.model.vectors(view.whole_graph(), view.reduced())

    def vectors(self, view: View) -> dict[str, Pair]:
        return vectors_by_name(self._all_vectors(view))

    @torch.no_grad()
    def refresh(self, reduce_all: Callable[[], dict[str, Tensor]], gather: Callable[[Tensor], Tensor]) -> None:
        """Builds the item graphs from the current weights."""
        features = {m: x for m, x in self._features.items() if isinstance(x, Tensor)}
        self.model.link(self._item_graph, reduce_all(), lambda: {m: gather(x) for m, x in features.items()})

    def _item_graph(self, rows: Tensor) -> ItemGraph:
        """Builds the item graph of rows [num_items, n], the same on every worker; collective.

        Every worker searches the neighbours of its share of the items, in blocks of `evaluation.memory_mib`.
        """
        k, share = self.config.item_neighbours, rank_slice(rows.shape[0], self.worker.rank, self.worker.world_size)
        ids = torch.zeros(rows.shape[0], k, dtype=torch.int64, device=rows.device)
        similarities = torch.zeros(rows.shape[0], k, device=rows.device)
        ids[share], similarities[share] = nearest_neighbours(rows, k, self.job.evaluation.memory_mib, share)
        self.worker.sum_([ids, similarities])
        return ItemGraph.from_neighbours(ids, similarities)

    def write(self, output: Output, selection: Selection) -> None:
        write_teacher(self.job, output, selection, output.weights, sum(p.numel() for p in self.model.parameters()))
