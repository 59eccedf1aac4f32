"""Computes the losses of docs/method.md.

Sums over examples are divided by `num_examples`, so that the losses of a batch's shards add up to the global mean.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def bpr_loss(positive: Tensor, negative: Tensor, num_examples: float, weights: Tensor | None = None) -> Tensor:
    """Computes Σ -w log σ(y+ - y-) / num_examples (Rendle et al. 2009).

    Args:
        positive, negative: Scores y+ and y-, [batch].
        num_examples: The divisor; see `Triples.num_examples`.
        weights: w [batch], 1 by default.
    """
    losses = F.logsigmoid(positive - negative)
    return -(losses if weights is None else weights * losses).sum() / num_examples


def softmax_loss(
    scores: Tensor, places: Tensor, columns: Tensor, further: Tensor, num_examples: float, weights: Tensor | None = None
) -> Tensor:
    """Computes Σ -w log softmax(positive among itself and the compared items) / num_examples, a sampled softmax (docs/method.md 1.6).

    Args:
        scores: Scores of the distinct users of the batch with the compared items, each item once [n, m].
        places: The row of each example's user, int64 [batch].
        columns: The column of each example's positive, int64 [batch]; -1 where it is not among the compared items.
        further: Scores of the positives whose column is -1, in the order of the examples.
        num_examples, weights: As in `bpr_loss`.
    """
    is_compared = columns >= 0
    own = scores[places, columns.clamp(min=0)].masked_scatter(~is_compared, further)
    all_compared = torch.logsumexp(scores, 1)[places]
    losses = torch.where(is_compared, all_compared, torch.logaddexp(all_compared, own)) - own
    return (losses if weights is None else weights * losses).sum() / num_examples


def l2_loss(rows: list[Tensor], num_examples: float, weights: Tensor | None = None) -> Tensor:
    """Computes ½ Σ w |row|² / num_examples over the batch's rows of the ID tables, as in LightGCN.

    Args:
        rows: Rows of users, positives and negatives, each [batch, d].
        num_examples, weights: As in `bpr_loss`.
    """
    squares = [r.square() if weights is None else weights[:, None] * r.square() for r in rows]
    return 0.5 * torch.stack([s.sum() for s in squares]).sum() / num_examples


def pair_loss(student: Tensor, teacher: Tensor, temperature: float, num_examples: float, weights: Tensor | None = None) -> Tensor:
    """Computes ranking distillation on pairs: τ² mean_{batch, j} w KL(Bernoulli σ(t_j) || Bernoulli σ(s_j)) (docs/method.md 3.1).

    s_j and t_j are the positive's score minus candidate j's, divided by τ.

    Args:
        student, teacher: Scores [batch, 1 + K], the positive first; only differences from the positive's score matter.
        temperature: τ.
        num_examples, weights: As in `bpr_loss`.
    """
    s = (student[:, :1] - student[:, 1:]) / temperature
    t = (teacher[:, :1] - teacher[:, 1:]) / temperature
    divergence = torch.sigmoid(t) * (F.logsigmoid(t) - F.logsigmoid(s)) + torch.sigmoid(-t) * (F.logsigmoid(-t) - F.logsigmoid(-s))
    if weights is not None:
        divergence = weights[:, None] * divergence
    return temperature**2 * divergence.sum() / (num_examples * s.shape[1])


def score_loss(student: Tensor, teacher: Tensor, temperature: float, num_examples: float, weights: Tensor | None = None) -> Tensor:
    """Computes ranking distillation on lists: τ² mean_batch w KL(softmax(teacher / τ) || softmax(student / τ)) (docs/method.md 3.4).

    Args:
        student, teacher: Scores of the candidates [batch, 1 + K]; what is added to all scores of a list does not matter.
        temperature: τ.
        num_examples, weights: As in `bpr_loss`.
    """
    s, t = torch.log_softmax(student / temperature, 1), torch.log_softmax(teacher / temperature, 1)
    divergence = (t.exp() * (t - s)).sum(1)
    return temperature**2 * (divergence if weights is None else weights * divergence).sum() / num_examples


@dataclass(frozen=True)
class _Split:
    """Holds log-probabilities of a softmax over [..., 1 + K]: of the positive and the rest [...], and of the negatives alone [..., K]."""

    positive: Tensor
    rest: Tensor
    negatives: Tensor

    @staticmethod
    def of(logits: Tensor) -> "_Split":
        rest = torch.logsumexp(logits[..., 1:], -1)
        # Both log-probabilities depend on this difference alone: taken as log-sigmoids they stay exact where a probability is tiny.
        margin = logits[..., 0] - rest
        return _Split(F.logsigmoid(margin), F.logsigmoid(-margin), logits[..., 1:] - rest[..., None])


def list_loss(
    student: Tensor,
    modal: Tensor,
    temperature: float,
    reweight_temperature: float,
    confident_weight: float,
    uncertain_weight: float,
    num_examples: float,
    reweight: bool = True,
    disentangle: bool = True,
    weights: Tensor | None = None,
) -> Tensor:
    """Computes denoised modality-aware ranking distillation: τ² Σ_m mean_u w_u ω_um [α KL_2 + β KL_neg] (docs/method.md 3.2).

    KL_2 compares the teacher's and the student's probabilities of {positive, rest}, KL_neg those of the renormalised negatives.

    Args:
        student: Scores [batch, 1 + K], the positive first.
        modal: The teacher's scores by modality [num_modalities, batch, 1 + K].
        temperature: τ.
        reweight_temperature: τ_ω of ω_um = |M| softmax_m(b^{T,m}_0 / τ_ω), which carries no gradient.
        confident_weight, uncertain_weight: α and β.
        num_examples: As in `bpr_loss`.
        reweight: False sets ω = 1.
        disentangle: False puts 1 - b^{T,m}_0 in β's place; with α = 1 the sum is then the plain KL(b^{T,m} || b^S).
        weights: As in `bpr_loss`.
    """
    teacher_split, student_split = _Split.of(modal / temperature), _Split.of(student / temperature)
    t_positive, t_rest, t_negatives = (
        teacher_split.positive.exp(),
        teacher_split.rest.exp(),
        teacher_split.negatives.exp(),
    )
    binary = t_positive * (teacher_split.positive - student_split.positive) + t_rest * (teacher_split.rest - student_split.rest)
    negatives = (t_negatives * (teacher_split.negatives - student_split.negatives)).sum(-1)
    coupling: Tensor | float = uncertain_weight if disentangle else t_rest
    divergence = confident_weight * binary + coupling * negatives  # [num_modalities, batch]
    if reweight:
        of_modalities = modal.shape[0] * torch.softmax(t_positive / reweight_temperature, 0)
        divergence = of_modalities.detach() * divergence
    if weights is not None:
        divergence = weights * divergence
    return temperature**2 * divergence.sum() / num_examples


def embedding_loss(student_items: list[Tensor], targets: list[Tensor], power: float, num_items: float | None = None) -> Tensor:
    """Computes modality-aware embedding distillation: mean_{m,i} max(0, 1 - cos(D_m e^S_i, M_m^I[i]))^γ (docs/method.md 3.3).

    Args:
        student_items: For each modality the decoded student vectors [n, d] of the batch's distinct positive items.
        targets: For each modality the teacher's vectors [n, d] of the same items.
        power: γ, at least 1.
        num_items: The divisor of the sum over items, where the n items are a shard of all; n by default.
    """
    errors = [1 - F.cosine_similarity(s, t, dim=1) for s, t in zip(student_items, targets)]
    # A cosine may exceed 1 by a rounding error, where a fractional power is not defined.
    return torch.stack([error.clamp(min=0).pow(power).sum() for error in errors]).mean() / (num_items or errors[0].numel())
