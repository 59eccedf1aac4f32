"""Trains PromptMM's own teacher (stage 1), in both engines."""

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ...core.config import TeacherConfig
from ...core.rows import RowTables
from ...core.sides import ITEMS
from ...core.teacher import Triples
from ...core.teacher.model import teacher_loss
from ...core.teacher.reduction import build_reduction
from ...core.teacher.softmax import compared_items
from ..artifacts.output import Output
from ..artifacts.teacher import write_teacher
from ..engines.examples import Examples
from ..engines.learners import AdamLearner, Learner
from ..engines.reduction import build_learner
from ..engines.view import ID, FeatureInputs, View
from ..loop.selection import Selection
from ..messages import TeacherJob
from ..worker import Worker
from .prompt_model import PromptModelTask


@dataclass(frozen=True)
class TeacherBatch:
    """Holds one worker's share of a micro-batch; see `TaskBatch` for the other attributes.

    Attributes:
        users, positives, negatives: int64 [n], dataset indices, or rows of a view once the batch is `located`.
        weights: float32 [n], weights of the examples; None where all are 1.
        further: int64, this share's items of the feature decay; empty where the decay is taken over the catalog.
        num_decayed: The number of items, over all shares of the step, that the decay is the mean over; None for the whole catalog.
        compared: int64, the items that the softmax loss compares the step's positives with, the same for all shares; None with other
            losses.
    """

    step: int
    size: int
    is_last: bool
    order_epoch: int
    users: Tensor
    positives: Tensor
    negatives: Tensor
    weights: Tensor | None
    further: Tensor
    num_decayed: int | None = None
    compared: Tensor | None = None

    @property
    def items(self) -> Tensor:
        """Returns the positives, then the negatives, then the compared items, int64 [2 n + number of compared items]."""
        compared = [] if self.compared is None else [self.compared]
        return torch.cat([self.positives, self.negatives, *compared])

    def located(self, users: Tensor, items: Tensor, further: Tensor) -> "TeacherBatch":
        """Returns the batch with rows of a view in place of dataset indices; `items` are in the order of the attribute."""
        count = self.users.numel()
        positives, negatives = items[:count], items[count : 2 * count]
        compared = None if self.compared is None else items[2 * count :]
        return replace(self, users=users, positives=positives, negatives=negatives, further=further, compared=compared)

    def to(self, device: torch.device) -> "TeacherBatch":
        """Returns the batch on a device."""
        weights, compared = (None if x is None else x.to(device) for x in (self.weights, self.compared))
        users, positives, negatives, further = (x.to(device) for x in (self.users, self.positives, self.negatives, self.further))
        return replace(self, users=users, positives=positives, negatives=negatives, further=further, weights=weights, compared=compared)


def pair_batches(
    examples: Examples, epoch: int, num_parts: int, config: TeacherConfig, further: Callable[[int, int], tuple[Tensor, int | None]]
) -> Generator[TeacherBatch, None, None]:
    """Yields the micro-batches of an epoch: train pairs with one uniform negative each.

    Negatives are functions of the example, so the micro-batches of a step draw what the whole batch would.

    Args:
        examples: The train interactions.
        epoch: The epoch.
        num_parts: The number of micro-batches in a step.
        config: The teacher's settings.
        further: Returns `further` and `num_decayed` of a batch from the numbers of its step and micro-batch.
    """
    for step in range(examples.num_steps):
        compared = compared_items(config, examples.train.num_columns, examples.seed, epoch * examples.num_steps + step)
        for part in range(num_parts):
            indices, users, positives = examples.of_step(epoch, step, examples.share_of(step, part, num_parts))
            negatives = examples.unseen(users, indices, 1, epoch)[:, 0]
            weights = examples.weights(users)
            more = (*further(step, part), compared)
            yield TeacherBatch(step, examples.size_of(step), part + 1 == num_parts, epoch, users, positives, negatives, weights, *more)


class PromptTeacherTask(PromptModelTask[TeacherBatch]):
    """Trains the teacher of docs/method.md 1: ID tables, reduction layers and prompt.

    Args:
        job: The teacher's job.
        worker: This worker.
    """

    stage: ClassVar[str] = "teacher"

    def __init__(self, job: TeacherJob, worker: Worker) -> None:
        config = job.config
        super().__init__(config, worker, job.engine)
        self.job, self.seed, self.train, self.init_scale = job, job.seed, config.train, config.init_scale
        self.starts_spectrally, self.examples = config.start == "spectral", config.examples
        self.start_exponents = config.start_user_exponent, config.start_item_exponent

    def build(self, dims: dict[str, int], counts: tuple[int, int], example: Callable[[], FeatureInputs]) -> None:
        self.dims, self.num_items = dims, counts[ITEMS]
        config, cluster = self.config, self.job.cluster
        module = build_reduction(dims, config, self.seed, cluster.checkpoint_activations).to(self.worker.device)
        module.prompt.requires_grad_(config.prompt)
        rate = config.reduction_learning_rate
        self.reduction = build_learner(module, rate, config.tower_dtype, cluster, self.worker, lambda: example().as_arguments())

    def learners(self, tables: RowTables | None) -> list[Learner]:
        assert self.reduction is not None, "build comes first"
        rate = self.config.train.learning_rate
        ids = [] if tables is None else [AdamLearner(tables, [(list(tables.parameters()), rate)], self.worker, "ids.")]
        return [*ids, self.reduction]

    def batches(self, examples: Examples, epoch: int, num_parts: int) -> Generator[TeacherBatch, None, None]:
        def further(step: int, part: int) -> tuple[Tensor, int | None]:
            return self.decayed_items(epoch * examples.num_steps + step, part, num_parts)

        return pair_batches(examples, epoch, num_parts, self.config, further)

    def reduce(self, inputs: FeatureInputs) -> dict[str, Tensor]:
        assert self.reduction is not None, "build comes first"
        return self.reduction(*inputs.as_arguments())

    def terms(self, view: View, batch: TeacherBatch) -> dict[str, Tensor]:
        vectors, num_decayed = self.all_vectors(view, final=False), None
        if batch.num_decayed is not None:
            vectors = vectors.with_reduced({m: z[batch.further] for m, z in vectors.reduced.items()})
            num_decayed = batch.num_decayed / self.worker.world_size
        share = batch.size / self.worker.world_size
        entries = view.graph.entries(batch.users, batch.positives) if self.config.leave_one_out else None
        triples = Triples(batch.users, batch.positives, batch.negatives, share, batch.weights, entries, num_decayed, batch.compared)
        return teacher_loss(vectors, view.users[ID], view.items[ID], triples, self.config)

    def write(self, output: Output, selection: Selection) -> None:
        of_reduction = {name: t for name, t in output.weights.items() if name.startswith("reduction.")}
        learnt = sum(t.numel() for name, t in of_reduction.items() if self.config.prompt or ".prompt." not in name)
        write_teacher(self.job, output, selection, of_reduction, learnt + sum(output.counts) * self.dim)
