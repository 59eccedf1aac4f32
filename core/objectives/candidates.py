"""Candidate lists: which items the teacher labels beside a user's positive (docs/method.md 3).

A policy draws a list for each example, as a function of seed, epoch and example alone, so that any process makes the same lists.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..config import DistillationConfig
from ..kinds import CANDIDATES
from ..random import random_below
from ..sampling import STREAM_TOP, UnseenItems


@dataclass(frozen=True)
class CandidateRequest:
    """Examples whose candidates are wanted.

    Attributes:
        users, positives: int64 [n], dataset indices.
        examples: int64 [n], global example indices: the keys of the draws.
        unseen: Draws items that a user has not seen in train.
        seed, epoch: Further keys of the draws.
        ranking: int64 [rows, depth], the teacher's best unseen items, best first; given where the policy's `depth` is more than 0.
        ranking_rows: int64 [n], the row of `ranking` of each example; None where rows are users.
    """

    users: Tensor
    positives: Tensor
    examples: Tensor
    unseen: UnseenItems
    seed: int
    epoch: int
    ranking: Tensor | None = None
    ranking_rows: Tensor | None = None


class CandidatePolicy:
    """The interface of every policy; `distill.candidates=module:Class` names a subclass of your own."""

    component: ClassVar[str] = "candidates"

    def __init__(self, config: DistillationConfig) -> None:
        self.config = config

    @property
    def num_candidates(self) -> int:
        """K, the candidates a list beside the positive; at least 1, since the first of them is BPR's negative."""
        raise NotImplementedError

    @property
    def depth(self) -> int:
        """How deep a ranking of the teacher's best unseen items the policy draws from; 0 where it needs none."""
        return 0

    def identity(self) -> dict[str, object]:
        """Everything of the settings that decides the lists, as JSON-able values: labels of other lists are refused."""
        raise NotImplementedError

    def draw(self, request: CandidateRequest) -> Tensor:
        """The candidates beside the positives, int64 [n, K]; the first is BPR's negative, uniform over the user's unseen items."""
        raise NotImplementedError


class MixedCandidates(CandidatePolicy):
    """`distill.num_uniform` uniform unseen items, then `distill.num_top` drawn from the teacher's top `distill.top_depth` unseen ones."""

    @property
    def num_candidates(self) -> int:
        return self.config.num_uniform + self.config.num_top

    @property
    def depth(self) -> int:
        return self.config.top_depth if self.config.num_top else 0

    def identity(self) -> dict[str, object]:
        return {"num_uniform": self.config.num_uniform, "num_top": self.config.num_top, "top_depth": self.config.top_depth}

    def draw(self, request: CandidateRequest) -> Tensor:
        uniform = request.unseen.draw(request.users, request.examples, self.config.num_uniform, request.seed, request.epoch)
        if not self.config.num_top:
            return uniform
        assert request.ranking is not None, "a policy with a depth comes with the teacher's ranking"
        slots = torch.arange(self.config.num_top, device=request.users.device)
        depth = request.ranking.shape[1]
        at = random_below(depth, STREAM_TOP, request.seed, request.epoch, request.examples[:, None], slots)
        rows = request.users if request.ranking_rows is None else request.ranking_rows
        return torch.cat([uniform, request.ranking[rows[:, None], at]], 1)


def candidate_policy(config: DistillationConfig) -> CandidatePolicy:
    """The policy that `distill.candidates` names.

    Raises:
        InputError: there is no such policy; the message lists those that there are.
    """
    kind: type[CandidatePolicy] = CANDIDATES.get(config.candidates)
    return kind(config)


def candidate_identity(config: DistillationConfig, seed: int) -> dict[str, object]:
    """What decides the candidate lists of a run: recorded with labels, and compared before they are used.

    Args:
        config: The distillation's settings.
        seed: `run.seed`.
    """
    kind = {} if config.candidates == CANDIDATES.names[0] else {"candidates": config.candidates}
    return {**candidate_policy(config).identity(), **kind, "seed": seed}


def candidate_lists(config: DistillationConfig, request: CandidateRequest) -> Tensor:
    """Lists of the positive and its candidates, int64 [n, 1 + K], by the policy that the settings name."""
    return torch.cat([request.positives[:, None], candidate_policy(config).draw(request)], 1)


def plain_lists(request: CandidateRequest) -> Tensor:
    """Lists of the positive and one uniform unseen item, int64 [n, 2]: what BPR needs, for a student without a teacher."""
    negatives = request.unseen.draw(request.users, request.examples, 1, request.seed, request.epoch)
    return torch.cat([request.positives[:, None], negatives], 1)
