"""Computes the terms of the student's loss: BPR with L2, and the distillation losses on the teacher's labels (docs/method.md 3).

A distillation loss is a function from `LossInputs` to a scalar, which `distillation_terms` multiplies by the loss's weight. Each loss that
ships has a setting for its weight (`distill.pair_weight` and so on); a loss of your own is named with its weight in `distill.losses`.
A loss that learns from what the teacher knows by modality says so with `@learns_by_modality`, and is refused where the teacher has no
modalities.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from torch import Tensor, nn

from ..config import DistillationConfig
from ..errors import InputError
from ..kinds import LOSSES
from ..losses import bpr_loss, embedding_loss, l2_loss, list_loss, pair_loss, score_loss
from .labels import Labels

_BY_MODALITY = "learns_by_modality"


class Decoders(nn.Module):
    """Maps student vectors to the teacher's size by D_m of the embedding loss: a linear map for each modality, or the identity.

    Args:
        modalities: Names of the modalities.
        student_dim, teacher_dim: d_S and d.
        learnt: Whether the maps are learnt even where the sizes agree; otherwise they are the identity there.
    """

    def __init__(self, modalities: list[str], student_dim: int, teacher_dim: int, learnt: bool) -> None:
        super().__init__()
        needed = learnt or student_dim != teacher_dim
        self.maps = nn.ModuleDict(
            {f"of_{m}": nn.Linear(student_dim, teacher_dim, bias=False) if needed else nn.Identity() for m in modalities}
        )

    def forward(self, items: Tensor) -> list[Tensor]:
        """Returns the mapped vectors, [n, d] for each modality, from student vectors [n, d_S]."""
        return [decoder(items) for decoder in self.maps.values()]


@dataclass(frozen=True)
class StudentSide:
    """Holds the student's inputs of a distillation loss, for one worker's share of a batch.

    Attributes:
        scores: The student's scores of the batch's candidates [batch, 1 + K], the positive first.
        items: The student's final item vectors [n, d_S].
        unique_items: int64, this worker's share of the distinct positive items of the global batch, as rows of `items`.
        decoders: The maps D_m of the embedding loss.
        num_examples: The divisor of sums over examples (see `Triples.num_examples`).
        num_unique: The divisor of sums over distinct items.
        weights: float32 [batch], weights of the examples by `distill.user_balance`; None where all are 1.
    """

    scores: Tensor
    items: Tensor
    unique_items: Tensor
    decoders: Decoders
    num_examples: float
    num_unique: float
    weights: Tensor | None = None


@dataclass(frozen=True)
class LossInputs:
    """Holds all that a distillation loss may read.

    Attributes:
        student: The student's inputs.
        teacher_scores: The teacher's final scores minus the positive's score, [batch, 1 + K].
        modal_scores: The teacher's scores by modality minus the positive's score, [num_modalities, batch, 1 + K]; no rows where the teacher
            has no modalities: a loss that reads them has to be marked with `learns_by_modality`.
        targets: Returns the teacher's vectors M_m^I of the distinct positives, [len(student.unique_items), d] for each modality.
        config: Settings of the distillation.
    """

    student: StudentSide
    teacher_scores: Tensor
    modal_scores: Tensor
    targets: Callable[[], list[Tensor]]
    config: DistillationConfig

    @staticmethod
    def of(student: StudentSide, labels: Labels, targets: Callable[[], list[Tensor]], config: DistillationConfig) -> "LossInputs":
        """Builds the inputs from the batch's labels, which must have scores."""
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
    """Computes L_pair, ranking distillation on pairs (docs/method.md 3.1)."""
    student = inputs.student
    return pair_loss(student.scores, inputs.teacher_scores, inputs.config.temperature, student.num_examples, student.weights)


@learns_by_modality
def by_modality(inputs: LossInputs) -> Tensor:
    """Computes L_list, denoised modality-aware ranking distillation on lists (docs/method.md 3.2)."""
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
        inputs.student.weights,
    )


def by_score(inputs: LossInputs) -> Tensor:
    """Computes L_score, ranking distillation on lists by the teacher's final score (docs/method.md 3.4)."""
    student, first = inputs.student, 0 if inputs.config.score_positive else 1
    scores, teacher = student.scores[:, first:], inputs.teacher_scores[:, first:]
    return score_loss(scores, teacher, inputs.config.temperature, student.num_examples, student.weights)


@learns_by_modality
def embedding(inputs: LossInputs) -> Tensor:
    """Computes L_emb, modality-aware embedding distillation (docs/method.md 3.3)."""
    student = inputs.student
    decoded = student.decoders(student.items[student.unique_items])
    return embedding_loss(decoded, inputs.targets(), inputs.config.embedding_power, student.num_unique)


def distillation_terms(inputs: LossInputs) -> dict[str, Tensor]:
    """Computes all distillation losses whose weight is not 0, each times its weight, by name.

    They are terms of the student's loss (docs/method.md 3.5) and of the loss of prompt-tuning (docs/method.md 4).
    """
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


def student_terms(
    scores: Tensor, rows: list[Tensor], l2: float, num_examples: float, weights: Tensor | None = None, bpr: float = 1.0
) -> dict[str, Tensor]:
    """Computes the terms that need no teacher: BPR with the first candidate as the negative, and L2 on the batch's rows.

    Args:
        scores: The student's scores of the batch's candidates [batch, 1 + K], the positive first.
        rows: The rows that L2 acts on, of the users, positives and negatives, each [batch, d_S]; not read where `l2` is 0.
        l2: Weight of L2, `student.l2`.
        num_examples: The divisor of sums over examples (see `Triples.num_examples`).
        weights: float32 [batch], weights of the examples (`UserWeights`); 1 by default.
        bpr: Weight of BPR, `student.bpr_weight`.
    """
    squares = l2 * l2_loss(rows, num_examples, weights) if l2 else scores.new_zeros(())
    return {"bpr": bpr * bpr_loss(scores[:, 0], scores[:, 1], num_examples, weights), "l2": squares}
