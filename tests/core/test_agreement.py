"""The share of the teacher's best unseen items that a student has among its own."""

import pytest
import torch
from promptmm.core import agreement as module
from promptmm.core.agreement import Scores, agreement
from promptmm.core.graph import Csr
from promptmm.core.histories import HistoryScores, Similarities


@pytest.fixture
def catalog():
    """Train items of 40 users, of whom the last has none and the first has seen all but two items; with two models' vectors."""
    generator = torch.Generator().manual_seed(3)
    seen = torch.rand(40, 30, generator=generator) < 0.2
    seen[0], seen[-1] = True, False
    seen[0, :2] = False
    pairs = seen.nonzero()
    train = Csr.from_pairs(pairs[:, 0], pairs[:, 1], 40, 30)
    models = [Scores(torch.randn(40, 6, generator=generator), torch.randn(30, 6, generator=generator)) for _ in range(2)]
    return train, seen, models


def by_hand(teacher, student, seen, k):
    shares = []
    for user in range(seen.shape[0]):
        if not seen[user].any():
            continue
        lists = []
        for scores in (teacher[user], student[user]):
            ranked = torch.sort(scores.masked_fill(seen[user], -torch.inf), descending=True, stable=True)
            lists.append({int(i) for i, score in zip(ranked.indices[:k], ranked.values[:k]) if score > -torch.inf})
        shares.append(len(lists[0] & lists[1]) / len(lists[0]))
    return sum(shares) / len(shares)


def test_it_is_the_mean_share_of_the_teachers_items(catalog):
    train, seen, (teacher, student) = catalog
    found = agreement(teacher, student, train, [3, 10])
    dense = [model.users @ model.items.T for model in (teacher, student)]
    assert found == pytest.approx({f"agreement@{k}": by_hand(*dense, seen, k) for k in (3, 10)})
    assert 0 < found["agreement@3"] < 1


def test_a_copy_agrees_wholly(catalog):
    train, _, (teacher, _) = catalog
    copy = Scores(3 * teacher.users, teacher.items)  # a user's scale changes no ranking
    assert agreement(teacher, copy, train, [5]) == {"agreement@5": 1.0}


def test_scores_from_histories_count(catalog):
    train, seen, (teacher, student) = catalog
    generator = torch.Generator().manual_seed(4)
    matrix = torch.rand(30, 30, generator=generator)
    every = torch.ones(30, 30).nonzero()
    similarities = Similarities(Csr.from_pairs(every[:, 0], every[:, 1], 30, 30), matrix.flatten())
    part = HistoryScores(torch.full((40,), 0.5), train, similarities)
    found = agreement(Scores(teacher.users, teacher.items, (part,)), student, train, [4])
    dense = teacher.users @ teacher.items.T + 0.5 * seen.float() @ matrix, student.users @ student.items.T
    assert found["agreement@4"] == pytest.approx(by_hand(*dense, seen, 4))


def test_of_many_users_some_are_compared_evenly_spaced(catalog, monkeypatch):
    train, seen, (teacher, student) = catalog
    monkeypatch.setattr(module, "MOST_USERS", 10)
    some = torch.zeros(40, dtype=torch.bool)
    some[:39:4] = True  # the last of the 40 users has no train items
    found = agreement(teacher, student, train, [5])
    dense = [(model.users @ model.items.T)[some] for model in (teacher, student)]
    assert found["agreement@5"] == pytest.approx(by_hand(*dense, seen[some], 5))


def test_without_train_interactions_there_is_nothing_to_compare(catalog):
    _, _, (teacher, student) = catalog
    nothing = Csr(torch.zeros(41, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), 30)
    assert agreement(teacher, student, nothing, [5]) == {}
