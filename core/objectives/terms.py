"""The terms of the student's loss: BPR with L2, and what it learns from the teacher's labels (docs/method.md 3).

A distillation loss is a function from `LossInputs` to a scalar; its weight is multiplied on by `distillation_terms`. The shipped ones have
weights of their own (`distill.pair_weight` and so on); one of your own is named with its weight in `distill.losses`. A loss that learns
from what the teacher knows by modality says so with `@learns_by_modality`, and is then refused where the teacher has no modalities.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from torch import Tensor, nn

from ..config import DistillationConfig
from ..errors import InputError
from ..kinds import LOSSES
from ..losses import bpr_loss, embedding_loss, l2_loss, list_loss, pair_loss
from .labels import Labels

_BY_MODALITY = "learns_by_modality"


class Decoders(nn.Module):
    """D_m of the embedding loss: a linear map per modality, or the identity where sizes agree and none is asked for."""

    def __init__(self, modalities: list[str], student_dim: int, teacher_dim: int, learnt: bool) -> None:
        super().__init__()
        needed = learnt or student_dim != teacher_dim
        self.maps = nn.ModuleDict(
            {f"of_{m}": nn.Linear(student_dim, teacher_dim, bias=False) if needed else nn.Identity() for m in modalities}
        )

    def forward(self, items: Tensor) -> list[Tensor]:
        """[n, d_S] -> one [n, d] per modality."""
        return [decoder(items) for decoder in self.maps.values()]


@dataclass(frozen=True)
class StudentSide:
    """The student's part of a distillation loss: one worker's share of a batch.

    Attributes:
        scores: Its scores of the batch's candidates [batch, 1 + K], the positive first.
        items: Its final item vectors [n, d_S].
        unique_items: int64, this worker's share of the distinct positive items of the global batch, rows of `items`.
        decoders: D_m, from [n, d_S] to a list of [n, d] by modality.
        num_examples: What sums over the examples are divided by (see `Triples.num_examples`).
        num_unique: What sums over the distinct items are divided by.
    """

    scores: Tensor
    items: Tensor
    unique_items: Tensor
    decoders: Decoders
    num_examples: float
    num_unique: float


@dataclass(frozen=True)
class LossInputs:
    """What a distillation loss may read.

    Attributes:
        student: The student's part.
        teacher_scores: The teacher's final scores, relative to the positive's [batch, 1 + K].
        modal_scores: The teacher's scores by modality, relative to the positive's [num_modalities, batch, 1 + K]; 0 rows where the teacher
            has no modalities: a loss that reads them has to be marked with `learns_by_modality`.
        targets: Makes the teacher's vectors M_m^I of the distinct positives by modality, a list of [len(unique_items), d]; an empty list
            where the teacher has no modalities, as above.
        config: The distillation's settings.
    """

    student: StudentSide
    teacher_scores: Tensor
    modal_scores: Tensor
    targets: Callable[[], list[Tensor]]
    config: DistillationConfig

    @staticmethod
    def of(student: StudentSide, labels: Labels, targets: Callable[[], list[Tensor]], config: DistillationConfig) -> "LossInputs":
        """From the batch's labels, which must have scores."""
        assert labels.scores is not None
        assert labels.modal_scores is not None
        return LossInputs(student, labels.scores, labels.modal_scores, targets, config)


DistillationLoss: TypeAlias = Callable[[LossInputs], Tensor]
Loss = TypeVar("Loss", bound=DistillationLoss)


def learns_by_modality(loss: Loss) -> Loss:
    """Marks a loss that reads `modal_scores` or `targets`: a teacher without modalities has nothing for it to learn from."""
    setattr(loss, _BY_MODALITY, True)
    return loss


def needs_modalities(name: str) -> bool:
    """Whether the distillation loss of a name learns from what the teacher knows by modality.

    Raises:
        InputError: there is no such loss.
    """
    return bool(getattr(LOSSES.get(name), _BY_MODALITY, False))


def pair(inputs: LossInputs) -> Tensor:
    """Returns L_pair, ranking distillation on pairs (docs/method.md 3.1)."""
    return pair_loss(inputs.student.scores, inputs.teacher_scores, inputs.config.temperature, inputs.student.num_examples)


@learns_by_modality
def by_modality(inputs: LossInputs) -> Tensor:
    """Returns L_list, denoised modality-aware ranking distillation on lists (docs/method.md 3.2)."""
    config = inputs.config
    return list_loss(
        inputs.student.scores,
        inputs.modal_scores,
        config.temperature,
        config.reweight_temperature,
        config.confident_weight,
        config.uncertain_weight,
        inputs.student.num_examples,
        config.reweight,
        config.disentangle,
    )


@learns_by_modality
def embedding(inputs: LossInputs) -> Tensor:
    """Returns L_emb, modality-aware embedding distillation (docs/method.md 3.3)."""
    own = inputs.student
    decoded = own.decoders(own.items[own.unique_items])
    return embedding_loss(decoded, inputs.targets(), inputs.config.embedding_power, own.num_unique)


def distillation_terms(inputs: LossInputs) -> dict[str, Tensor]:
    """The distillation losses that have a weight, each times its weight: the terms that teacher and student share (docs/method.md 3, 4)."""
    weights = inputs.config.loss_weights()
    losses: dict[str, DistillationLoss] = {name: LOSSES.get(name) for name in weights}
    return {name: weight * _scalar(losses[name](inputs), name) for name, weight in weights.items()}


def _scalar(term: Tensor, name: str) -> Tensor:
    """Checks that a loss, perhaps of the user's own, has made a scalar.

    Raises:
        InputError: it has made something else.
    """
    if not isinstance(term, Tensor) or term.dim():
        made = f"a tensor of shape {list(term.shape)}" if isinstance(term, Tensor) else f"a {type(term).__name__}"
        raise InputError(f"distill.losses: {name} returns {made}; a loss is a scalar tensor, such as a sum divided by student.num_examples")
    return term


def student_terms(scores: Tensor, rows: list[Tensor], l2: float, num_examples: float, weights: Tensor | None = None) -> dict[str, Tensor]:
    """BPR(S) with the first candidate as the negative, and L2 on the batch's rows.

    Args:
        scores: The student's scores of the batch's candidates [batch, 1 + K].
        rows: What L2 acts on: of the users, positives and negatives, each [batch, d_S].
        l2: `student.l2`.
        num_examples: What sums over the examples are divided by.
        weights: float32 [batch], of the examples (`UserWeights`); 1 where not given.
    """
    return {"bpr": bpr_loss(scores[:, 0], scores[:, 1], num_examples, weights), "l2": l2 * l2_loss(rows, num_examples, weights)}
