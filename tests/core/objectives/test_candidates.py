"""Candidate policies: unseen items, as a function of (seed, epoch, example) alone, and named by what decides the lists."""

import dataclasses
import json

import pytest
import torch
from promptmm.core.config import DistillationConfig
from promptmm.core.graph import Csr
from promptmm.core.kinds import CANDIDATES
from promptmm.core.objectives import (
    CandidatePolicy,
    CandidateRequest,
    candidate_identity,
    candidate_lists,
    candidate_policy,
    placed_lists,
    plain_lists,
)
from promptmm.core.sampling import UnseenItems

NUM_ITEMS = 8
SEEN = [[], [0], [7], [0, 1, 2], [5, 6, 7], [1, 3, 5, 7], [0, 1, 2, 3, 4, 6, 7], [1, 2, 3, 4, 5, 6, 7], [0, 1, 2, 3, 4, 5, 6]]
ALL = CANDIDATES.names


def train_of(seen, num_items=NUM_ITEMS):
    rows = [user for user, items in enumerate(seen) for _ in items]
    columns = [item for items in seen for item in items]
    return Csr.from_pairs(torch.tensor(rows, dtype=torch.int64), torch.tensor(columns, dtype=torch.int64), len(seen), num_items)


def test_candidate_lists():
    unseen = UnseenItems(train_of(SEEN))
    config, without_top = DistillationConfig(num_uniform=5, num_top=3, top_depth=4), DistillationConfig(num_uniform=5)
    users = torch.tensor([3, 1, 3, 5])
    positives, examples = torch.tensor([0, 0, 2, 3]), torch.tensor([10, 4, 11, 20])
    top_items = torch.tensor([[8 * user + place for place in range(4)] for user in range(len(SEEN))])  # told apart by user
    lists = candidate_lists(config, CandidateRequest(users, positives, examples, unseen, 2, 7, top_items))
    assert lists.shape == (4, 1 + 5 + 3)
    assert torch.equal(lists[:, 0], positives)
    assert torch.equal(lists[:, 1:6], unseen.draw(users, examples, 5, seed=2, epoch=7))
    for user, top in zip(users.tolist(), lists[:, 6:]):
        assert set(top.tolist()) <= set(top_items[user].tolist())
    # Without the top part the rest is the same, and so it is for a part of the batch.
    assert torch.equal(candidate_lists(without_top, CandidateRequest(users, positives, examples, unseen, 2, 7)), lists[:, :6])
    part = torch.tensor([2, 0])
    again = candidate_lists(config, CandidateRequest(users[part], positives[part], examples[part], unseen, 2, 7, top_items))
    assert torch.equal(again, lists[part])
    rows = torch.arange(4)  # a ranking of the batch's users alone
    of_batch = candidate_lists(config, CandidateRequest(users, positives, examples, unseen, 2, 7, top_items[users], rows))
    assert torch.equal(of_batch, lists)


def test_the_top_part_is_uniform_over_the_teachers_ranking():
    unseen, num_examples, depth = UnseenItems(train_of([[]], 100)), 3000, 6
    users = torch.zeros(num_examples, dtype=torch.int64)
    top_items = torch.arange(50, 50 + depth)[None]
    config = DistillationConfig(num_uniform=1, num_top=2, top_depth=depth)
    lists = candidate_lists(config, CandidateRequest(users, users, torch.arange(num_examples), unseen, 0, 0, top_items))
    counts = torch.bincount(lists[:, 2:].flatten() - 50, minlength=depth)
    expected = 2 * num_examples / depth
    assert float(((counts - expected) ** 2 / expected).sum()) < 25  # 5 degrees of freedom: p < 2e-4


def settings_of(kind, **settings):
    return DistillationConfig(**{"candidates": kind, "num_uniform": 4, "num_top": 2, "top_depth": 3, **settings})


def some_request(policy, num_examples=60, seed=3, epoch=1):
    """Examples of all users that have a train item, with a ranking of their unseen items."""
    train = train_of(SEEN)
    edges = torch.arange(num_examples) % train.columns.numel()
    depth = min(policy.depth, NUM_ITEMS - max(len(items) for items in SEEN))
    unseen = [[item for item in reversed(range(NUM_ITEMS)) if item not in items][:depth] for items in SEEN]
    ranking = torch.tensor(unseen) if depth else None
    degrees = torch.bincount(train.columns, minlength=NUM_ITEMS)
    keys = train.rows[edges], train.columns[edges], torch.arange(num_examples) + 100
    return CandidateRequest(*keys, UnseenItems(train), seed, epoch, ranking, item_degrees=degrees)


@pytest.mark.parametrize("num_top", [0, 2])
@pytest.mark.parametrize("kind", ALL)
def test_candidates_are_unseen_and_as_many_as_the_policy_says(kind, num_top):
    config = settings_of(kind, num_top=num_top)
    policy = candidate_policy(config)
    assert isinstance(policy, CandidatePolicy)
    request = some_request(policy)
    lists = candidate_lists(config, request)
    assert lists.dtype == torch.int64
    assert lists.shape == (60, 1 + policy.num_candidates)
    assert torch.equal(lists[:, 0], request.positives)
    assert torch.equal(lists[:, 1:], policy.draw(request))
    for user, candidates in zip(request.users.tolist(), lists[:, 1:].tolist()):
        assert set(candidates) <= set(range(NUM_ITEMS)) - set(SEEN[user])


@pytest.mark.parametrize("kind", ALL)
def test_lists_are_a_function_of_seed_epoch_and_example(kind):
    config = settings_of(kind)
    request = some_request(candidate_policy(config))
    whole = candidate_lists(config, request)
    assert torch.equal(candidate_lists(config, request), whole)
    for places in (*torch.arange(60).split(13), torch.tensor([41, 7, 8, 0]), torch.arange(0)):
        part = dataclasses.replace(
            request, users=request.users[places], positives=request.positives[places], examples=request.examples[places]
        )
        assert torch.equal(candidate_lists(config, part), whole[places])
    for change in ({"seed": 4}, {"epoch": 2}, {"examples": request.examples + 1}):
        assert not torch.equal(candidate_lists(config, dataclasses.replace(request, **change)), whole)


@pytest.mark.parametrize("kind", ALL)
def test_the_first_candidate_is_uniform_over_the_unseen_items(kind):
    """It is BPR's negative, whatever else the policy draws from."""
    policy, num_examples = candidate_policy(settings_of(kind)), 4000
    user = torch.full((num_examples,), 3)
    request = dataclasses.replace(some_request(policy), users=user, positives=torch.zeros_like(user), examples=torch.arange(num_examples))
    counts = torch.bincount(policy.draw(request)[:, 0], minlength=NUM_ITEMS)
    assert counts[SEEN[3]].sum() == 0
    expected = num_examples / (NUM_ITEMS - len(SEEN[3]))
    allowed = torch.tensor([item for item in range(NUM_ITEMS) if item not in SEEN[3]])
    assert float(((counts[allowed] - expected) ** 2 / expected).sum()) < 25  # 4 degrees of freedom: p < 1e-4


CHANGES = [{"num_uniform": 5}, {"num_top": 3}, {"num_top": 0}, {"top_depth": 2}]


@pytest.mark.parametrize("kind", ALL)
def test_the_identity_is_plain(kind):
    identity = candidate_identity(settings_of(kind), seed=7)
    assert json.loads(json.dumps(identity)) == identity
    assert candidate_policy(settings_of(kind)).identity().items() <= identity.items()
    assert identity["seed"] == 7


@pytest.mark.parametrize("change", [*CHANGES, {"seed": 8}], ids=str)
@pytest.mark.parametrize("kind", ALL)
def test_what_changes_the_lists_changes_the_identity(kind, change):
    def of(seed=7, **settings):
        config = settings_of(kind, **settings)
        policy = candidate_policy(config)
        request = some_request(policy, seed=seed)
        wide = dataclasses.replace(request, ranking=torch.arange(900).view(9, 100)[:, : policy.depth] if policy.depth else None)
        return candidate_lists(config, wide), candidate_identity(config, seed)

    (lists, identity), (other_lists, other_identity) = of(), of(**change)
    assert lists.shape != other_lists.shape or not torch.equal(lists, other_lists)
    assert identity != other_identity


@pytest.mark.parametrize("change", [{"temperature": 2.0}, {"pair_weight": 0.5}, {"rounds": 2}, {"decoder": True}], ids=str)
@pytest.mark.parametrize("kind", ALL)
def test_what_leaves_the_lists_alone_leaves_the_identity(kind, change):
    assert candidate_identity(settings_of(kind, **change), 7) == candidate_identity(settings_of(kind), 7)


OWN = """
import torch
from promptmm.core.objectives import CandidatePolicy


class Nearest(CandidatePolicy):
    num_candidates = 2

    def identity(self):
        return {"num_uniform": self.config.num_uniform, "num_top": self.config.num_top, "top_depth": self.config.top_depth}

    def draw(self, request):
        first = request.unseen.draw(request.users, request.examples, 1, request.seed, request.epoch)
        return torch.cat([first, first], 1)
"""


def test_a_policy_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "candidates_of_mine.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    config = settings_of("candidates_of_mine:Nearest")
    lists = candidate_lists(config, some_request(candidate_policy(config)))
    assert lists.shape == (60, 3)
    assert torch.equal(lists[:, 1], lists[:, 2])
    # The policy itself is part of what decides the lists, though its settings are those of another.
    assert candidate_identity(config, 7) != candidate_identity(settings_of("mixed"), 7)


def test_plain_lists_have_the_first_candidate_of_every_policy():
    for kind in ALL:
        config = settings_of(kind)
        request = some_request(candidate_policy(config))
        plain = plain_lists(request)
        assert plain.shape == (60, 2)
        assert torch.equal(plain, candidate_lists(config, request)[:, :2])


@pytest.mark.parametrize("popularity", [0.0, 0.75, 1.0])
def test_popular_candidates_are_drawn_by_their_degrees(popularity):
    """By chi-square over the unseen items of several users, one with many train items and one without any."""
    policy, num_examples = candidate_policy(settings_of("popular", num_uniform=4, popularity=popularity)), 4000
    degrees = torch.tensor([0, 1, 2, 5, 9, 30, 100, 3])
    for user in (0, 3, 5, 6):
        users = torch.full((num_examples,), user)
        request = dataclasses.replace(
            some_request(policy), users=users, positives=torch.zeros_like(users), examples=torch.arange(num_examples), item_degrees=degrees
        )
        counts = torch.bincount(policy.draw_unseen(request)[:, 1:].flatten(), minlength=NUM_ITEMS).double()
        allowed = [item for item in range(NUM_ITEMS) if item not in SEEN[user]]
        weights = degrees.clamp(min=1)[allowed].double() ** popularity
        expected = 3 * num_examples * weights / weights.sum()
        assert counts.sum() == counts[allowed].sum() == 3 * num_examples
        assert float(((counts[allowed] - expected) ** 2 / expected).sum()) < 30  # at most 7 degrees of freedom: p < 1e-4


def test_one_unseen_candidate_is_uniform_whatever_the_policy():
    popular, mixed = (candidate_policy(settings_of(kind, num_uniform=1)) for kind in ("popular", "mixed"))
    assert torch.equal(popular.draw(some_request(popular)), mixed.draw(some_request(mixed)))


class Best(CANDIDATES.get("mixed")):
    """Takes the best of the ranking, by overriding `draw` alone."""

    def draw(self, request):
        return torch.cat([self.draw_unseen(request), request.ranking[request.users][:, :1].expand(-1, self.config.num_top)], 1)


class Other(Best):
    """Draws as its base, in a class that says nothing of how."""


@pytest.mark.parametrize("kind", [Best, Other])
def test_a_policy_that_overrides_draw_alone_has_no_places(kind, monkeypatch):
    config, request = settings_of("mixed"), some_request(candidate_policy(settings_of("mixed")))
    lists, places = placed_lists(config, request)
    assert torch.equal(request.ranking[request.users[:, None], places], lists[:, -2:])
    monkeypatch.setattr(CANDIDATES, "get", lambda name: kind)
    lists, places = placed_lists(config, request)
    assert places is None
    assert torch.equal(lists[:, -2:], request.ranking[request.users][:, :1].expand(-1, 2))
