"""Rankings of cold items among themselves, against brute force."""

import numpy as np
import pytest
import torch
from promptmm.core.cold_ranking import ColdSplit, content_metrics, random_metrics, vector_metrics
from promptmm.core.graph import Csr

NUM_USERS, NUM_ITEMS = 50, 80
COLD = torch.arange(0, NUM_ITEMS, 4)  # 20 of them


def make_split(generator: torch.Generator) -> tuple[ColdSplit, torch.Tensor]:
    """Random pairs; users 0 to 4 have no train item, users 5 to 9 no cold one. Returns the split, and who has which item."""
    has = torch.rand(NUM_USERS, NUM_ITEMS, generator=generator) < 0.15
    is_cold = torch.zeros(NUM_ITEMS, dtype=torch.bool)
    is_cold[COLD] = True
    has[:5] &= is_cold
    has[5:10] &= ~is_cold

    def csr(pairs: torch.Tensor) -> Csr:
        return Csr.from_pairs(*pairs.nonzero().T, NUM_USERS, NUM_ITEMS)

    return ColdSplit.of(csr(has & is_cold), csr(has & ~is_cold)), has


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def recall(scores: np.ndarray, held: np.ndarray, k: int) -> float:
    hits = [held[u][np.argsort(-scores[u], kind="stable")[:k]].sum() / held[u].sum() for u in range(len(held))]
    return float(np.mean(hits))


def test_users_are_those_with_train_items_and_cold_ones(generator):
    split, has = make_split(generator)
    assert split.items.tolist() == [i for i in COLD.tolist() if has[:, i].any()]
    expected = [u for u in range(10, NUM_USERS) if has[u][COLD].any() and has[u].sum() > has[u][COLD].sum()]
    assert split.users.tolist() == expected
    assert not set(split.history.columns.tolist()) & set(split.items.tolist())


def test_vectors_rank_the_cold_items_alone(generator):
    split, has = make_split(generator)
    users, items = torch.randn(NUM_USERS, 5, generator=generator), torch.randn(split.items.numel(), 5, generator=generator)
    found = vector_metrics(split, users, items, [3, 10, 50])
    scores, held = (users[split.users] @ items.T).numpy(), has[split.users][:, split.items].numpy()
    for k in (3, 10):
        assert found[f"recall@{k}"] == pytest.approx(recall(scores, held, k))
    assert not any(name.endswith("@50") for name in found)  # longer than the cold items can fill
    assert vector_metrics(split, users, items, [50]) == {}


@pytest.mark.parametrize("block", [3, 4096])
def test_content_is_the_sum_of_cosines_to_the_profile(generator, monkeypatch, block):
    monkeypatch.setattr("promptmm.core.cold_ranking.USERS_AT_A_TIME", block)
    split, has = make_split(generator)
    features, scores = {}, 0
    for modality, dim in (("visual", 4), ("text", 6)):
        rows, present = torch.randn(NUM_ITEMS, dim, generator=generator) * 3 + 5, torch.rand(NUM_ITEMS, generator=generator) > 0.2
        features[modality] = rows, present
        warm = present.clone()
        warm[split.items] = False
        unit = ((rows - rows[warm].mean(0)) / rows[warm].std(0, unbiased=False) * present[:, None]).numpy()
        unit = unit / np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
        history = has[split.users].numpy().astype(float)
        history[:, split.items] = 0
        profile = history @ unit
        profile = profile / np.maximum(np.linalg.norm(profile, axis=1, keepdims=True), 1e-12)
        scores = scores + profile @ unit[split.items.numpy()].T
    found = content_metrics(split, features, False, [5])
    held = has[split.users][:, split.items].numpy()
    assert found["recall@5"] == pytest.approx(recall(scores, held, 5), abs=1e-6)


def test_random_is_what_random_rankings_have_in_the_mean(generator):
    split, _ = make_split(generator)
    found = random_metrics(split, [5, 50])
    assert set(found) == {"recall@5", "ndcg@5"}
    drawn = []
    for _ in range(40):
        users = torch.eye(split.users.numel())
        items = torch.rand(split.items.numel(), split.users.numel(), generator=generator)
        whole = torch.zeros(NUM_USERS, split.users.numel())
        whole[split.users] = users
        drawn.append([vector_metrics(split, whole, items, [5])[name] for name in ("recall@5", "ndcg@5")])
    np.testing.assert_allclose(np.mean(drawn, 0), [found["recall@5"], found["ndcg@5"]], rtol=0.06)
