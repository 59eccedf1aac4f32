"""Draws candidate lists: the items that the teacher labels beside a user's positive (docs/method.md 3.6).

A policy draws a list for each example as a function of seed, epoch and example alone, so that any process makes the same lists.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..config import DistillationConfig
from ..errors import InputError
from ..kinds import CANDIDATES
from ..random import random_below
from ..sampling import STREAM_CANDIDATE, STREAM_TOP, UnseenItems, WeightedUnseenItems


@dataclass(frozen=True)
class CandidateRequest:
    """Asks a policy for the candidates of some examples.

    Attributes:
        users: int64 [n], the user of each example, as a row of `unseen`.
        positives: int64 [n], dataset indices of the positives.
        examples: int64 [n], global example indices: the keys of the draws.
        unseen: Draws items that a user has not seen in train.
        seed, epoch: Further keys of the draws.
        ranking: int64 [num_rows, depth], the teacher's best unseen items, best first; given where the policy's `depth` is more than 0.
        ranking_rows: int64 [n], the row of `ranking` for each example; None where that row is the example's user.
        item_degrees: int64 [num_items], the number of train interactions of each item; given where the policy's `reads_degrees` is True.
    """

    users: Tensor
    positives: Tensor
    examples: Tensor
    unseen: UnseenItems
    seed: int
    epoch: int
    ranking: Tensor | None = None
    ranking_rows: Tensor | None = None
    item_degrees: Tensor | None = None


class CandidatePolicy:
    """Defines the interface of every candidate policy; `distill.candidates=module:Class` names a subclass of your own."""

    component: ClassVar[str] = "candidates"
    draws_stored: ClassVar[bool] = False  # whether it has `draw_stored`
    reads_degrees: ClassVar[bool] = False  # whether requests come with `item_degrees`

    def __init__(self, config: DistillationConfig) -> None:
        self.config = config

    @property
    def num_candidates(self) -> int:
        """Returns K, the number of candidates in a list beside the positive: at least 1, since the first one is BPR's negative."""
        raise NotImplementedError

    @property
    def depth(self) -> int:
        """Returns the depth of the ranking of the teacher's best unseen items that the policy draws from; 0 where it needs none."""
        return 0

    def identity(self) -> dict[str, object]:
        """Returns all settings that decide the lists, as JSON-able values; a student refuses labels whose values differ."""
        raise NotImplementedError

    def draw(self, request: CandidateRequest) -> Tensor:
        """Returns the candidates beside the positives, int64 [n, K]; the first is BPR's negative, uniform over the user's unseen items."""
        raise NotImplementedError

    def draw_placed(self, request: CandidateRequest) -> tuple[Tensor, Tensor | None]:
        """Returns what `draw` does, and the places of its last t candidates in their rows of the ranking, int64 [n, t]; None for no places.

        Labels keep such places, which take less room than items, and take the scores of these items from the rankings. A class that
        defines `draw` alone, and not this method, has no places.
        """
        return self.draw(request), None

    @property
    def num_ranked(self) -> int:
        """Returns t, the number of last candidates that `draw_placed` gives places of."""
        return 0

    def draw_stored(self, examples: Tensor, pool: int, depth: int, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
        """Draws lists from what labels by user keep (`labels.by=users`): a pool of uniform unseen items and the teacher's ranking.

        Args:
            examples: int64 [n], global example indices, the keys of the draws.
            pool: The number of items in a user's pool.
            depth: The depth of the ranking; 0 where `self.depth` is.
            seed, epoch: Further keys.

        Returns:
            Places in the pool, int64 [n, u], and in the ranking, int64 [n, t], with u + t = `num_candidates`; the first place in the pool
            is that of BPR's negative.
        """
        raise NotImplementedError


class MixedCandidates(CandidatePolicy):
    """Draws `distill.num_uniform` uniform unseen items, then `distill.num_top` of the teacher's top `distill.top_depth` unseen items."""

    draws_stored: ClassVar[bool] = True

    @property
    def num_candidates(self) -> int:
        return self.config.num_uniform + self.config.num_top

    @property
    def depth(self) -> int:
        return self.config.top_depth if self.config.num_top else 0

    @property
    def num_ranked(self) -> int:
        return self.config.num_top

    def identity(self) -> dict[str, object]:
        return {"num_uniform": self.config.num_uniform, "num_top": self.config.num_top, "top_depth": self.config.top_depth}

    def draw(self, request: CandidateRequest) -> Tensor:
        return self.draw_placed(request)[0]

    def draw_placed(self, request: CandidateRequest) -> tuple[Tensor, Tensor | None]:
        unseen = self.draw_unseen(request)
        if not self.config.num_top:
            return unseen, None
        assert request.ranking is not None, "a policy with a depth comes with the teacher's ranking"
        keys = request.seed, request.epoch, STREAM_TOP
        places = draw_places(request.ranking.shape[1], request.examples, self.config.num_top, *keys)
        rows = request.users if request.ranking_rows is None else request.ranking_rows
        of_ranking = request.ranking.take(rows[:, None] * request.ranking.shape[1] + places)  # faster than an index by row and column
        return torch.cat([unseen, of_ranking], 1), places

    def draw_unseen(self, request: CandidateRequest) -> Tensor:
        """Draws the candidates that do not come from the ranking, int64 [n, distill.num_uniform]."""
        return request.unseen.draw(request.users, request.examples, self.config.num_uniform, request.seed, request.epoch)

    def draw_stored(self, examples: Tensor, pool: int, depth: int, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
        of_pool = draw_places(pool, examples, self.config.num_uniform, seed, epoch, STREAM_CANDIDATE)
        return of_pool, draw_places(depth, examples, self.config.num_top, seed, epoch, STREAM_TOP)


class PopularCandidates(MixedCandidates):
    """Draws as `mixed` does, but all uniform items after the first, which is BPR's negative, by popularity.

    An unseen item i is drawn with a probability proportional to max(degree_i, 1)^p, where p is `distill.popularity`.
    """

    draws_stored: ClassVar[bool] = False
    reads_degrees: ClassVar[bool] = True

    def identity(self) -> dict[str, object]:
        return {**super().identity(), "popularity": self.config.popularity}

    def draw_unseen(self, request: CandidateRequest) -> Tensor:
        keys = request.users, request.examples
        first = request.unseen.draw(*keys, 1, request.seed, request.epoch)
        count = self.config.num_uniform - 1
        if not count:
            return first
        assert request.item_degrees is not None, "a policy that reads degrees comes with them"
        weights = WeightedUnseenItems.scaled(request.item_degrees.clamp(min=1).double().pow(self.config.popularity))
        popular = WeightedUnseenItems(request.unseen.train, weights)
        return torch.cat([first, popular.draw(*keys, count, request.seed, request.epoch)], 1)


def draw_places(depth: int, examples: Tensor, count: int, seed: int, epoch: int, stream: int) -> Tensor:
    """Draws places of rankings of a depth, independently and uniformly, int64 [n, count]; further arguments are those of `draw_ranked`."""
    slots = torch.arange(count, device=examples.device)
    return random_below(depth, stream, seed, epoch, examples[:, None], slots)


def draw_ranked(ranking: Tensor, rows: Tensor, examples: Tensor, count: int, seed: int, epoch: int, stream: int) -> Tensor:
    """Draws items from rankings, independently and uniformly, int64 [n, count].

    Args:
        ranking: int64 [num_rows, depth], a ranking in each row.
        rows: int64 [n], the row of each example.
        examples: int64 [n], global example indices.
        count: The number of draws for each example.
        seed, epoch, stream: Further keys of the draws.
    """
    return ranking[rows[:, None], draw_places(ranking.shape[1], examples, count, seed, epoch, stream)]


def candidate_policy(config: DistillationConfig) -> CandidatePolicy:
    """Returns the policy that `distill.candidates` names.

    Raises:
        InputError: there is no such policy; the message lists the policies that ship.
    """
    kind: type[CandidatePolicy] = CANDIDATES.get(config.candidates)
    return kind(config)


def candidate_identity(config: DistillationConfig, seed: int) -> dict[str, object]:
    """Returns all that decides the candidate lists of a run: it is recorded with labels, and compared before labels are used.

    Args:
        config: Settings of the distillation.
        seed: `run.seed`.
    """
    kind = {} if config.candidates == CANDIDATES.names[0] else {"candidates": config.candidates}
    return {**candidate_policy(config).identity(), **kind, "seed": seed}


def candidate_lists(config: DistillationConfig, request: CandidateRequest) -> Tensor:
    """Draws lists of the positive and its candidates, int64 [n, 1 + K], by the policy that the settings name."""
    return placed_lists(config, request)[0]


def placed_lists(config: DistillationConfig, request: CandidateRequest) -> tuple[Tensor, Tensor | None]:
    """Draws lists as `candidate_lists` does; returns them and the places of their last items in rankings, as `draw_placed` does."""
    policy = candidate_policy(config)
    drawn, places = policy.draw_placed(request) if _gives_places(type(policy)) else (policy.draw(request), None)
    if drawn.shape != (request.users.numel(), policy.num_candidates):
        raise InputError(
            f"distill.candidates={config.candidates}: drew candidates of shape {list(drawn.shape)}, expected "
            f"[{request.users.numel()}, {policy.num_candidates}], a row of num_candidates for each example"
        )
    return torch.cat([request.positives[:, None], drawn], 1), places


def _gives_places(kind: type[CandidatePolicy]) -> bool:
    """Whether `draw_placed` is of the class that says how a policy draws: a subclass that overrides `draw` alone draws other items."""
    return "draw_placed" in next(vars(base) for base in kind.__mro__ if {"draw", "draw_placed"} & vars(base).keys())


def plain_lists(request: CandidateRequest) -> Tensor:
    """Draws lists of the positive and one uniform unseen item, int64 [n, 2], as BPR alone needs for a student without a teacher."""
    negatives = request.unseen.draw(request.users, request.examples, 1, request.seed, request.epoch)
    return torch.cat([request.positives[:, None], negatives], 1)
