"""The facts of small catalogs, against values worked out by hand and against the project's own evaluation."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from promptmm.core.errors import InputError
from promptmm.core.metrics import metric_of_users
from promptmm.core.ranking import held_out_places
from promptmm.graph_store.dataset import Dataset, open_dataset
from promptmm.jobs.inspection import facts as facts_module
from promptmm.jobs.inspection import rankings, scorers
from promptmm.jobs.inspection.degrees import HEAVIEST, is_busy, spread_of
from promptmm.jobs.inspection.facts import (
    CO_OCCURRENCE,
    CO_OCCURRENCE_BALANCED,
    CO_OCCURRENCE_OTHERS,
    POPULARITY,
    POPULARITY_BUSY,
    POPULARITY_OTHERS,
    SPECTRAL,
    CatalogFacts,
    catalog_facts,
    content,
)

# Items 4 and 5 have no train interaction.
TRAIN = [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 1), (3, 3)]
VALIDATION = [(0, 2), (2, 0), (2, 4), (3, 5)]
VISUAL = np.array([[1, 0], [1, 0], [0, 1], [-1, 0], [-1, 0], [0, -1]], np.float32)

close = pytest.approx


@pytest.fixture
def four_users(write) -> Dataset:
    """Four users, six items, one modality."""
    return write(4, 6, TRAIN, VALIDATION, features={"visual": VISUAL})


@pytest.fixture
def lists_of_two(monkeypatch):
    monkeypatch.setattr(rankings, "LIST_LENGTH", 2)


def test_counts(four_users):
    facts = catalog_facts(four_users)
    assert (facts.num_users, facts.num_items) == (4, 6)
    assert facts.num_interactions == {"train": 7, "validation": 4}
    assert facts.density == close(7 / 24)
    assert (facts.users_without_train, facts.items_without_train) == (0, 2)
    assert facts.users.mean == close(7 / 4)
    assert facts.users.quantiles == (1, 1, 1, 1, 2, 3, 3, 3)
    assert facts.items.quantiles == (0, 0, 0, 1, 2, 3, 3, 3)
    assert facts.busy.count == 0


def test_spread():
    spread = spread_of(torch.tensor([3, 1, 2, 1]))
    assert spread.gini == close(0.25)
    assert spread.share_of_heaviest(0.01) == close(3 / 7)  # one user at least
    assert spread.share_of_heaviest(0.5) == close(5 / 7)
    assert spread_of(torch.full((50,), 4)).gini == close(0)
    assert spread_of(torch.full((200,), 4)).heaviest_shares == close([math.ceil(share * 200) / 200 for share in HEAVIEST])
    one_has_all = torch.zeros(1000, dtype=torch.int64)
    one_has_all[17] = 5
    assert spread_of(one_has_all).gini == close(0.999)
    assert is_busy(one_has_all).nonzero().tolist() == [[17]]
    assert not is_busy(torch.tensor([10, 0, 0, 0, 0, 0, 0, 0, 0, 0])).any()  # ten times the mean is not more than that


def test_rankings_by_hand(four_users, lists_of_two):
    validation = catalog_facts(four_users).validation
    popularity, counts, visual = (validation.rankings[name] for name in (POPULARITY, CO_OCCURRENCE, content("visual", False)))
    for ranking in (popularity, counts, visual, validation.rankings[CO_OCCURRENCE_BALANCED]):
        assert ranking.recall == close(0.5)  # 1, 1/2 and 0
        assert ranking.error == close(0.5 / math.sqrt(3))
    assert popularity.auc == close((5 / 6 + 1 + 1 / 8 + 1 / 8) / 4)
    assert popularity.auc_cold == close(1 / 8)
    assert counts.auc == close((1 + 1 + 1 / 4 + 1 / 2) / 4)
    assert counts.auc_cold == close(3 / 8)
    assert visual.auc == close((5 / 6 + 1 + 1 / 8 + 5 / 8) / 4)
    assert visual.auc_cold == close(3 / 8)


def test_what_validation_says_by_hand(four_users, lists_of_two):
    validation = catalog_facts(four_users).validation
    assert (validation.k, validation.num_users, validation.num_ranked, validation.median_train_items) == (2, 3, 3, 1)
    assert validation.chance == close((2 / 4 + 2 / 5 + 2 / 5) / 3)
    assert validation.cold_share == close(0.5)
    best = validation.rankings[validation.best].recall
    assert validation.error_low == close(math.sqrt(best * (1 - best) * 2.5) / 3)
    assert validation.error_high == close(math.sqrt(best * (1 - best) / 3))
    assert [(group.title, group.share, group.recall) for group in validation.groups] == [("0", 0.5, 0), ("1 to 5", 0.5, 1)]


def test_a_difference_has_an_error_of_its_own(four_users, lists_of_two):
    found = rankings.rankings_of(
        {
            "first": rankings.Judged(torch.tensor([1.0, 1, 0]), torch.ones(4, dtype=torch.bool), torch.ones(4)),
            "second": rankings.Judged(torch.tensor([1.0, 0, 0]), torch.ones(4, dtype=torch.bool), torch.ones(4)),
        },
        rankings.held_out_items(four_users, four_users.csr("train"), 0),
    )
    assert found["first"].difference_error == 0
    assert found["second"].difference_error == close(math.sqrt(1 / 3) / math.sqrt(3))


def test_busy_users(write):
    train = [*((0, item) for item in range(40)), *((user, 40 + user % 3) for user in range(1, 30))]
    facts = catalog_facts(write(30, 50, train, [(1, 42), (2, 5)]))
    assert (facts.busy.count, facts.busy.share) == (1, close(40 / 69))
    found = facts.validation.rankings
    assert {POPULARITY_BUSY, POPULARITY_OTHERS, CO_OCCURRENCE_OTHERS} < found.keys()
    assert found[POPULARITY_OTHERS].recall == close(1)  # items 40 to 42 come first, then 0 to 16 by index
    assert found[POPULARITY_BUSY].recall == close(0.5)  # item 5 only
    assert [group.title for group in facts.validation.groups] == ["0", "6 to 15"]
    assert facts.validation.cold_share == 0  # item 5 has the busy user's interaction


def test_singular_values(four_users):
    adjacency = np.zeros((4, 6))
    users, items = four_users.interactions("train")
    adjacency[users, items] = 1
    degrees = [np.maximum(adjacency.sum(axis), 1) for axis in (1, 0)]
    values = np.linalg.svd(adjacency / np.sqrt(np.outer(*degrees)), compute_uv=False)
    spectrum = catalog_facts(four_users).spectrum
    assert spectrum.values == close(values, abs=2e-3)  # some have multiplicity or are 0
    assert spectrum.effective_rank == close((values**2).sum())
    assert spectrum.share(4) == close(1, abs=1e-3)


@pytest.mark.parametrize("dense", [0, 2], ids=["dense products", "sparse products"])
def test_recall_is_that_of_the_projects_evaluation(random_catalog, monkeypatch, dense):
    """Every score as a product of two matrices, ranked by `core.ranking`."""
    monkeypatch.setattr(scorers, "DENSE_SHARE", dense)
    dataset = random_catalog()
    train, validation = dataset.csr("train"), dataset.csr("validation")
    adjacency = torch.zeros(dataset.num_users, dataset.num_items)
    adjacency[train.rows, train.columns] = 1
    one, weights = torch.ones(dataset.num_users, 1), 1 / train.degrees.clamp(min=1).float()
    rows = torch.from_numpy(dataset.features("text")[0]).double()
    standard = (rows - rows.mean(0)) / rows.std(0, correction=0)
    unit = torch.nn.functional.normalize(standard, dim=1).float()
    products = {
        POPULARITY: (one, adjacency.sum(0)[:, None]),
        CO_OCCURRENCE: (adjacency, adjacency.T @ adjacency),
        CO_OCCURRENCE_BALANCED: (adjacency, adjacency.T @ (weights[:, None] * adjacency)),
        content("text", False): (adjacency @ unit, unit),
    }
    rows_of = torch.unique(validation.rows, return_inverse=True)[1]
    found = catalog_facts(dataset).validation.rankings
    for name, (users, items) in products.items():
        places = held_out_places(users, items, validation, train, 20)
        recalls = metric_of_users("recall", 20, places, rows_of, validation.degrees[validation.degrees > 0])
        assert found[name].recall == close(float(recalls.mean()), abs=1e-9), name
    assert found[CO_OCCURRENCE].recall != found[POPULARITY].recall


def test_blocks_do_not_matter(random_catalog, monkeypatch):
    dataset = random_catalog()
    whole = catalog_facts(dataset)
    monkeypatch.setattr(rankings, "BLOCK_SCORES", 1)
    monkeypatch.setattr(rankings, "LEAST_BLOCK", 7)
    in_blocks = catalog_facts(dataset)
    for name, ranking in whole.validation.rankings.items():
        if name != SPECTRAL:  # all directions of so small a graph are kept: scores of unseen items are rounding errors around 0
            assert dataclasses.astuple(in_blocks.validation.rankings[name])[:3] == close(dataclasses.astuple(ranking)[:3]), name


def test_a_seeded_sample_of_users(random_catalog, monkeypatch):
    dataset = random_catalog()
    monkeypatch.setattr(rankings, "MOST_SCORES", 1)
    monkeypatch.setattr(rankings, "LEAST_USERS", 20)
    first, again, other = (catalog_facts(dataset, seed) for seed in (0, 0, 1))
    assert first == again
    assert first.validation.num_ranked == other.validation.num_ranked == 20 < first.validation.num_users
    assert first.validation.rankings[POPULARITY] != other.validation.rankings[POPULARITY]


def test_features(write):
    nan = np.nan
    text = np.array([[1, 2, 5], [1, 2, 5], [3, 3, 5], [nan, nan, nan], [0.0, 4, 5], [-0.0, 4, 5]], np.float32)
    modality = catalog_facts(write(4, 6, TRAIN, VALIDATION, features={"text": text})).modalities["text"]
    assert (modality.dim, modality.share_present) == (3, close(5 / 6))
    assert (modality.num_duplicates, modality.num_constant_rows, modality.num_constant_columns) == (2, 0, 1)
    zeros = np.array([[0, 0], [0, 0], [1, 1], [1, 2], [2, 1], [0, 3]], np.float16)
    modality = catalog_facts(write(4, 6, TRAIN, features={"text": zeros})).modalities["text"]
    assert (modality.num_duplicates, modality.num_constant_rows, modality.num_constant_columns) == (1, 3, 0)


def test_effective_dimensions(four_users, write):
    assert catalog_facts(four_users).modalities["visual"].effective_dim == close(2)
    same = np.repeat(np.arange(6, dtype=np.float32)[:, None], 5, axis=1)
    assert catalog_facts(write(4, 6, TRAIN, features={"text": same})).modalities["text"].effective_dim == close(1)
    constant = np.ones((6, 3), np.float32)
    assert catalog_facts(write(4, 6, TRAIN, VALIDATION, features={"text": constant})).modalities["text"].effective_dim == 0


def test_whitening_makes_cosines_of_what_loud_columns_hide(write):
    """Forty columns repeat one noise, and two tell which of four groups an item and its users belong to."""
    rng = np.random.default_rng(0)
    group = np.arange(80) % 4
    signal = np.stack([np.cos(group * np.pi / 2), np.sin(group * np.pi / 2)], 1)
    noise = rng.standard_normal((80, 1)) + 0.05 * rng.standard_normal((80, 40))
    rows = np.concatenate([signal, noise], 1).astype(np.float32)
    train = [(user, item) for user in range(40) for item in range(user % 4, 80, 4) if (user + item // 4) % 5]
    validation = [(user, item) for user in range(40) for item in range(user % 4, 80, 4) if not (user + item // 4) % 5]
    found = catalog_facts(write(40, 80, train, validation, features={"text": rows})).validation.rankings
    assert found[content("text", True)].recall > found[content("text", False)].recall + 0.2
    assert found[content("text", True)].auc > 0.9


def test_without_validation_and_features(write):
    facts = catalog_facts(write(4, 6, TRAIN))
    assert facts.validation is None
    assert facts.modalities == {}
    assert facts.num_interactions == {"train": 7, "validation": 0}


@pytest.mark.parametrize("validation", [[], [(0, 2)]], ids=["no validation", "a validation item"])
def test_one_user(write, validation):
    facts = catalog_facts(write(1, 3, [(0, 0), (0, 1)], validation, features={"text": np.eye(3, dtype=np.float32)}))
    assert facts.users.gini == close(0)
    assert facts.spectrum.values == (1.0,)
    if validation:
        assert facts.validation.rankings[POPULARITY].recall == 1  # the only candidate
        assert facts.validation.rankings[POPULARITY].error == 0
        assert facts.validation.chance == 1


def test_users_who_have_seen_everything(write):
    train = [*((0, item) for item in range(5)), (1, 0), (2, 1), *((3, item) for item in range(4))]
    facts = catalog_facts(write(4, 5, train, [(1, 2), (3, 4)], features={"text": np.eye(5, dtype=np.float32)}))
    for ranking in facts.validation.rankings.values():
        assert ranking.recall == 1  # lists as long as the catalog
        assert 0 <= ranking.auc <= 1  # user 3 has one candidate alone, which says nothing


def test_a_validation_user_without_train_items(write):
    facts = catalog_facts(write(3, 30, [(0, 0), (0, 1), (1, 0)], [(2, 0), (1, 29)], features={"text": np.eye(30, dtype=np.float32)}))
    assert facts.users_without_train == 1
    assert facts.validation.rankings[POPULARITY].recall == close(0.5)
    assert facts.validation.rankings[SPECTRAL].recall == close(0.5)  # all scores are 0: items by index


def test_the_test_split_is_never_opened(write):
    pairs = (VALIDATION, [(1, 4), (3, 0)])
    dataset = write(4, 6, TRAIN, *pairs, features={"visual": np.eye(6, dtype=np.float32)})
    (dataset.folder / "interactions" / "test.parquet").unlink()
    with pytest.raises(InputError):
        open_dataset(str(dataset.folder))
    assert catalog_facts(dataset) == catalog_facts(write(4, 6, TRAIN, VALIDATION, features={"visual": np.eye(6, dtype=np.float32)}))


def test_json_round_trip(four_users, write):
    for dataset in (four_users, write(4, 6, TRAIN)):
        facts = catalog_facts(dataset)
        assert CatalogFacts.from_json(json.loads(json.dumps(dataclasses.asdict(facts)))) == facts
    with pytest.raises(InputError, match="users"):
        CatalogFacts.from_json({"num_items": 3})


def test_every_name_of_a_ranking_is_there(four_users):
    names = {facts_module.POPULARITY, CO_OCCURRENCE, CO_OCCURRENCE_BALANCED, SPECTRAL, "content:visual", "whitened:visual"}
    assert catalog_facts(four_users).validation.rankings.keys() == names
