"""Trains the student (stage 2) in both engines: from labels (materialised or streamed), beside a resident teacher, or without one."""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...core.graph import Csr
from ...core.objectives import (
    CandidateRequest,
    Decoders,
    Labels,
    LossInputs,
    StudentSide,
    distillation_terms,
    needs_modalities,
    plain_lists,
    student_terms,
)
from ...core.rows import RowTables
from ...core.sampling import UserWeights
from ...core.scoring import candidate_scores
from ...core.sides import ITEMS, SIDES, USERS
from ...core.students import LayeredStudent, build_student, check_start_from_histories, closest_tables, warm_start_maps
from ..artifacts.output import Output
from ..artifacts.student import write_student
from ..artifacts.teacher import FinalScores, final_scores, modal_item_rows
from ..engines.examples import Examples
from ..engines.learners import AdamLearner, Learner, take_prefix
from ..engines.view import ID, FeatureInputs, View
from ..labels.source import LabelSource
from ..labels.teacher_scores import TeacherScores
from ..loop.selection import Selection
from ..messages import StudentJob
from ..worker import Worker
from .base import Pair, RowsOf, Task
from .distinct import distinct_positives
from .layers import LayerByLayer
from .own_candidates import OwnCandidates
from .tuning import PromptTuner

WARM_START_ROWS = 16_384


@dataclass(frozen=True)
class StudentBatch:
    """Holds one worker's share of a step; see `TaskBatch` for the other attributes.

    Attributes:
        labels: Users, candidates and the teacher's scores, if there are any.
        weights: float32 [n], weights of the examples in BPR and L2; None where all are 1.
        taught_weights: float32 [n], weights of the examples in the distillation losses; None where all are 1.
    """

    step: int
    size: int
    order_epoch: int
    labels: Labels
    weights: Tensor | None
    taught_weights: Tensor | None = None
    is_last: bool = True
    further: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))

    @property
    def users(self) -> Tensor:
        """Returns the users, int64 [n]."""
        return self.labels.users

    @property
    def items(self) -> Tensor:
        """Returns the candidates, int64 [n, 1 + K]."""
        return self.labels.candidates

    def located(self, users: Tensor, items: Tensor, further: Tensor) -> "StudentBatch":
        """Returns the batch with rows of a view in place of dataset indices."""
        return replace(self, labels=Labels(users, items, self.labels.scores, self.labels.modal_scores))

    def to(self, device: torch.device) -> "StudentBatch":
        """Returns the batch on a device."""
        weights, taught_weights = (None if x is None else x.to(device) for x in (self.weights, self.taught_weights))
        return replace(self, labels=self.labels.to(device), weights=weights, taught_weights=taught_weights)


class StudentTask(Task[StudentBatch]):
    """Trains the student and its decoders, from labels and frozen targets, beside a resident teacher, or without a teacher.

    Args:
        job: The student's job.
        worker: This worker.
        open_labels: Opens the labels of some epochs, from the modalities' names and the epochs; called only where the student learns from
            labels.
        tuner: The resident teacher whose prompt is tuned beside the student; None where labels are made elsewhere or there is no teacher.
        train: Returns the train items of all users, on the CPU; called where the teacher scores histories.
        show: Shows a line to the person who started the run.

    Raises:
        InputError: the teacher has no vectors that the student could start from.
    """

    stage: ClassVar[str] = "student"

    def __init__(
        self,
        job: StudentJob,
        worker: Worker,
        open_labels: Callable[[list[str], range], LabelSource],
        tuner: PromptTuner | None,
        train: Callable[[], Csr],
        show: Callable[[str], None],
    ) -> None:
        config, cache_dir = job.config, job.cluster.cache_dir
        self.job, self.worker, self.config, self.seed, self.show = job, worker, config, job.seed, show
        self.train, self.dim, self.init_scale, self.user_balance = config.train, config.dim, config.init_scale, config.user_balance
        self.starts_spectrally, self.examples = config.start == "spectral", config.examples
        self.start_exponents = config.start_user_exponent, config.start_item_exponent
        self.tuner, self._open_labels, self._train_items = tuner, open_labels, train
        self._source: LabelSource | None = None
        self.own: OwnCandidates | None = None
        self._scores: TeacherScores | None = None
        taught = job.distill.use_teacher
        self.targets = modal_item_rows(job.teacher_url, job.revision, cache_dir) if taught else {}
        if job.engine == "full":  # which has room for whole tables: a GPU then has the targets at hand
            self.targets = {modality: rows.to(worker.device) for modality, rows in self.targets.items()}
        starts_from_teacher = taught and config.starts_from_teacher
        self.frozen = final_scores(job.teacher_url, job.revision, train, cache_dir) if starts_from_teacher else None
        dims = (self.frozen.rows[USERS].dim, self.frozen.rows[ITEMS].dim) if self.frozen is not None else None
        self.model = build_student(config, job.seed, dims)
        if self.frozen is not None and self.frozen.histories:
            check_start_from_histories(config, job.engine)
        self.model.to(worker.device)
        self.learns_rows, self.num_hops = self.model.learns_rows, self.model.num_hops(config)
        self.decoders = self._build_decoders().to(worker.device)

    def _build_decoders(self) -> Decoders:
        # The targets' size, since final vectors may be longer
        teacher_dim = next(iter(self.targets.values())).dim if self.targets else self.dim
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return Decoders(list(self.targets), self.dim, teacher_dim, self.job.distill.decoder)

    @property
    def vector_dims(self) -> dict[str, int]:
        return {"final": self.dim}

    def build(self, dims: dict[str, int], counts: tuple[int, int], example: Callable[[], FeatureInputs]) -> None:
        """Does nothing: a student does not depend on features."""

    def initial_rows(self, own_ids: Pair) -> tuple[RowsOf, RowsOf]:
        frozen, config = self.frozen, self.config
        if frozen is None:
            return super().initial_rows(own_ids)
        rows = frozen.rows
        if not self.model.learns_rows:
            return rows[USERS].__getitem__, rows[ITEMS].__getitem__
        if frozen.histories:
            users, items = self._closest_tables(frozen)
            self.frozen = None  # its similarities are not read again
            return users.__getitem__, items.__getitem__

        def chunks(side: int) -> Iterator[Tensor]:
            return (rows[side][ids] for ids in own_ids[side].split(WARM_START_ROWS))

        maps = warm_start_maps([chunks(side) for side in SIDES], config.dim, self.worker.sum_)

        def projected(side: int) -> RowsOf:
            return lambda ids: (rows[side][ids].double() @ maps[side]).float()

        return projected(USERS), projected(ITEMS)

    def _closest_tables(self, frozen: FinalScores) -> tuple[Tensor, Tensor]:
        """Computes the tables to start from on rank 0, whose rows all workers take: other processors would round otherwise; collective."""
        train = frozen.histories[0].histories
        counts = train.num_rows, train.num_columns
        if self.worker.is_first:
            users, items = (rows[torch.arange(count)] for rows, count in zip(frozen.rows, counts))
            tables = closest_tables(users, items, frozen.histories, self.config.dim, self.seed)
        else:
            tables = torch.zeros(counts[USERS], self.config.dim), torch.zeros(counts[ITEMS], self.config.dim)
        self.worker.sum_(tables)
        return tables

    def learners(self, tables: RowTables | None) -> list[Learner]:
        if tables is not None and self.model.learns_rows:
            self.model.add_module("ids", tables)  # whole tables are weights of the student like others
        trained = nn.ModuleDict({"student": self.model, "decoders": self.decoders})
        learner = AdamLearner(trained, [(list(trained.parameters()), self.config.train.learning_rate)], self.worker, "student.", "")
        return [learner] if self.tuner is None else [learner, self.tuner.learner(self.worker)]

    def open(self, epochs: range) -> None:
        if self.job.distill.use_teacher and self.tuner is None:
            self._source = self._open_labels(list(self.targets), epochs)
            has_own = self.job.distill.num_student > 0
            self._scores = self._teacher_scores() if has_own else None

    def _teacher_scores(self) -> TeacherScores:
        job, by_modality = self.job, any(needs_modalities(name) for name in self.job.distill.loss_weights())
        return TeacherScores(job.teacher_url, job.revision, self._train_items, job.cluster.cache_dir, by_modality, self.worker.device)

    def close(self) -> None:
        if self._source is not None:
            self._source.close()

    def start_epoch(self, examples: Examples, vectors: Callable[[], dict[str, Pair]]) -> None:
        if self.job.distill.num_student:
            self.rank_own(examples, vectors()["final"])

    def rank_own(self, examples: Examples, vectors: Pair) -> None:
        """Ranks all items by the student's final vectors of users and items, for candidates of its own; collective."""
        if self.own is None:
            self.own = OwnCandidates(self.job.distill, self.worker, examples.train, self.seed, self._scores)
        self.own.rank(*vectors)

    def batches(self, examples: Examples, epoch: int, num_parts: int) -> Generator[StudentBatch, None, None]:
        assert num_parts == 1, "a student's step is one batch"
        balance = UserWeights.of(examples.train.pointers, self.job.distill.user_balance)
        order_epoch = epoch if self._source is None else self._source.order_epoch(epoch)
        for step, labels in self._labels(examples, epoch):
            labels = labels.to(examples.train.pointers.device)
            if self.own is not None:
                indices, _, _ = examples.of_step(order_epoch, step, examples.share_of(step))
                labels = self.own.extend(labels, indices, epoch)
            weights, taught = examples.weights(labels.users), balance(labels.users) if balance else None
            yield StudentBatch(step, examples.size_of(step), order_epoch, labels, weights, taught)

    def _labels(self, examples: Examples, epoch: int) -> Iterator[tuple[int, Labels]]:
        """Yields every step's labels from their source, or lists that are drawn here: without a teacher and beside a resident one."""
        if self._source is not None:
            yield from self._source.epoch(epoch)
            return
        for step in range(examples.num_steps):
            indices, users, positives = examples.of_step(epoch, step, examples.share_of(step))
            rows, unseen = examples.unseen_of(users)
            request = CandidateRequest(rows, positives, indices, unseen, self.seed, epoch)
            candidates = plain_lists(request) if self.tuner is None else self.tuner.candidates(request)
            yield step, Labels(users, candidates)

    def terms(self, view: View, batch: StudentBatch) -> dict[str, Tensor]:
        labels, share = batch.labels, batch.size / self.worker.world_size
        users, items = view.users[ID], view.items[ID]
        final_users, final_items = self.model.vectors(view.graph, users, items)
        scores = candidate_scores(final_users, final_items, labels.users, labels.candidates)
        rows = []
        if self.config.l2:
            rows = self.model.regularised(users[labels.users], [items[labels.candidates[:, 0]], items[labels.candidates[:, 1]]])
        terms = student_terms(scores, rows, self.config.l2, share, batch.weights, self.config.bpr_weight)
        if self.job.distill.use_teacher:
            unique, places, count = distinct_positives(self.worker, view, labels.candidates[:, 0])
            num_unique = count / self.worker.world_size
            student = StudentSide(scores, final_items, places, self.decoders, share, num_unique, batch.taught_weights)
            if self.tuner is not None:
                terms.update(self.tuner.terms(student, labels.users, labels.candidates, unique))
            else:
                terms.update(distillation_terms(LossInputs.of(student, labels, lambda: self._targets(unique), self.job.distill)))
        return terms

    def _targets(self, items: Tensor) -> list[Tensor]:
        return [rows[items].to(self.worker.device) for rows in self.targets.values()]

    def vectors(self, view: View) -> dict[str, Pair]:
        return {"final": self.model.vectors(view.graph, view.users[ID], view.items[ID])}

    def infer(self, layers: LayerByLayer) -> None:
        """Computes the student's layers one after the other."""
        model, device = self.model, self.worker.device
        assert isinstance(model, LayeredStudent)
        start = layers.tables("layer", self.dim)
        layers.fill(start, lambda side, places, ids: layers.ids[side].read(places))

        def layer(number: int, own: Tensor, neighbours: Tensor) -> Tensor:
            return model.layer(number, own.to(device), neighbours.to(device)).cpu()

        layers.mean_of_layers(start, layers.tables("final", self.dim), model.num_layers(self.config), layer)

    def epoch_facts(self) -> dict[str, float]:
        return {"revision": self.job.revision}

    def write(self, output: Output, selection: Selection) -> None:
        if self.tuner is not None:
            self.tuner.write(self.worker, self.job.teacher_url, self.job.revision + 1, {"lineage": self.job.lineage, "regime": "inline"})
        if self.worker.is_first:
            weights = {n: t for n, t in take_prefix("student.", output.weights).items() if not n.startswith("ids.")}
            count = write_student(self.job, output, selection, weights)
            self.show(f"[student] best: {selection.chosen}; student of {count:,} parameters written")
        self.worker.barrier()
