"""The losses of docs/method.md. Sums over examples are divided by `num_examples`, so that shards of a batch add up to the global mean."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def bpr_loss(positive: Tensor, negative: Tensor, num_examples: float, weights: Tensor | None = None) -> Tensor:
    """Σ -w log σ(y+ - y-) / num_examples (Rendle et al. 2009).

    Args:
        positive, negative: Scores [batch].
        num_examples: Size of the global batch.
        weights: w [batch], 1 where not given.
    """
    losses = F.logsigmoid(positive - negative)
    return -(losses if weights is None else weights * losses).sum() / num_examples


def l2_loss(rows: list[Tensor], num_examples: float, weights: Tensor | None = None) -> Tensor:
    """½ Σ w |row|² / num_examples over the batch's rows of the ID tables, as LightGCN; weights as in `bpr_loss`."""
    squares = [r.square() if weights is None else weights[:, None] * r.square() for r in rows]
    return 0.5 * torch.stack([s.sum() for s in squares]).sum() / num_examples


def pair_loss(student: Tensor, teacher: Tensor, temperature: float, num_examples: float) -> Tensor:
    """Ranking distillation on pairs: τ² mean_{batch, j} KL(Bernoulli σ(t_j/τ) || Bernoulli σ(s_j/τ)) (docs/method.md 3.1).

    Args:
        student, teacher: Scores [batch, 1 + K], the positive first; only differences to it matter.
    """
    s = (student[:, :1] - student[:, 1:]) / temperature
    t = (teacher[:, :1] - teacher[:, 1:]) / temperature
    divergence = torch.sigmoid(t) * (F.logsigmoid(t) - F.logsigmoid(s)) + torch.sigmoid(-t) * (F.logsigmoid(-t) - F.logsigmoid(-s))
    return temperature**2 * divergence.sum() / (num_examples * s.shape[1])


@dataclass(frozen=True)
class _Split:
    """Log-probabilities of a softmax over [..., 1 + K]: log b_+, log b_rest, and the renormalised negatives [..., K]."""

    positive: Tensor
    rest: Tensor
    negatives: Tensor

    @staticmethod
    def of(logits: Tensor) -> "_Split":
        rest = torch.logsumexp(logits[..., 1:], -1)
        # The two logits decide {positive, rest} alone: sigmoids of their difference stay exact when one of them is tiny.
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
) -> Tensor:
    """Denoised modality-aware ranking distillation: τ² Σ_m mean_u ω_um [α KL_{pos,rest} + β KL_negatives] (docs/method.md 3.2).

    Args:
        student: Scores [batch, 1 + K], the positive first.
        modal: The teacher's scores by modality [num_modalities, batch, 1 + K].
        temperature: τ.
        reweight_temperature: τ_ω of ω_um = |M| softmax_m(b^{T,m}_+ / τ_ω), detached.
        confident_weight, uncertain_weight: α and β.
        reweight: False sets ω = 1.
        disentangle: False keeps the coupled factor: β becomes 1 - b^T_+, and with α = 1 the sum is the plain KL(b^T || b^S).
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
        weights = modal.shape[0] * torch.softmax(t_positive / reweight_temperature, 0)
        divergence = weights.detach() * divergence
    return temperature**2 * divergence.sum() / num_examples


def embedding_loss(student_items: list[Tensor], targets: list[Tensor], power: float, num_items: float | None = None) -> Tensor:
    """Modality-aware embedding distillation: mean_{m,i} (1 - cos(D_m e^S_i, M_m^I[i]))^γ (docs/method.md 3.3).

    Args:
        student_items: Per modality the decoded student vectors [n, d] of the batch's unique positive items.
        targets: Per modality the teacher's item vectors [n, d].
        power: γ, at least 1.
        num_items: Items that the mean is over, where these are a shard of them.
    """
    errors = [1 - F.cosine_similarity(s, t, dim=1) for s, t in zip(student_items, targets)]
    # A cosine may exceed 1 by a rounding error, where a fractional power is not defined.
    return torch.stack([error.clamp(min=0).pow(power).sum() for error in errors]).mean() / (num_items or errors[0].numel())
