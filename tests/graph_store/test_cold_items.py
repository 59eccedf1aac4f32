"""Items held out whole: every pair of theirs is in the split `cold` and in no other."""

import dataclasses

import numpy as np
import pytest
from promptmm.core.artifact import has_artifact
from promptmm.graph_store import dataset_writer
from promptmm.graph_store.catalog import Catalog, Unsplit, ids_of
from promptmm.graph_store.config import SourceConfig
from promptmm.graph_store.dataset import Dataset, open_dataset
from promptmm.graph_store.dataset_writer import write_dataset
from promptmm.graph_store.splits import HoldOut

NUM_USERS, NUM_ITEMS = 40, 60
SPLITS = ("train", "validation", "test")


def make_catalog(is_split: bool, kind: str = "random") -> Catalog:
    """3,000 pairs with repeats; items 50 and later have no interaction, items below 5 no features."""
    rng = np.random.default_rng(5)
    pairs = rng.integers(0, NUM_USERS, 3000), rng.integers(0, 50, 3000)
    rows, present = rng.standard_normal((NUM_ITEMS, 3)).astype(np.float32), np.arange(NUM_ITEMS) >= 5
    ids = ids_of(list(map(str, range(NUM_USERS)))), ids_of(list(map(str, range(NUM_ITEMS))))
    if not is_split:
        config = SourceConfig(split=kind, format="parquet", path="x", seed=3)
        return Catalog(*ids, Unsplit(pairs, config, rng.integers(0, 1000, 3000)), {"visual": (rows, present)})
    label = (pairs[0] * 7 + pairs[1]) % 5  # a function of the pair, so that repeats are of one split
    chosen = {"train": label < 3, "validation": label == 3, "test": label == 4}
    return Catalog(*ids, {s: (pairs[0][at], pairs[1][at]) for s, at in chosen.items()}, {"visual": (rows, present)})


def written(folder, catalog: Catalog, share: float = 0.2, seed: int = 0, memory_mib: int = 1024) -> Dataset:
    write_dataset(str(folder), catalog, {}, memory_mib, HoldOut(cold_items=share, seed=seed))
    return open_dataset(str(folder))


def pairs_of(dataset: Dataset, split: str) -> set[tuple[int, int]]:
    return set(zip(*(column.tolist() for column in dataset.interactions(split))))


def cold_items(dataset: Dataset) -> set[int]:
    return set(dataset.interactions("cold")[1].tolist())


@pytest.mark.parametrize(("is_split", "kind"), [(True, "random"), (False, "random"), (False, "time")])
def test_no_pair_of_a_cold_item_is_in_another_split(tmp_path, is_split, kind):
    catalog = make_catalog(is_split, kind)
    plain, dataset = written(tmp_path / "plain", catalog, 0.0), written(tmp_path / "d", catalog)
    cold = cold_items(dataset)
    assert len(cold) == dataset.manifest["num_cold_items"] == 9  # a fifth of the 45 that have features and interactions
    assert cold <= set(range(5, 50))
    everything = set().union(*(pairs_of(plain, split) for split in SPLITS))
    assert pairs_of(dataset, "cold") == {(user, item) for user, item in everything if item in cold}
    kept = [pairs_of(dataset, split) for split in SPLITS]
    assert set().union(*kept) == {(user, item) for user, item in everything if item not in cold}
    assert sum(map(len, kept)) == len(set().union(*kept))
    for split in (*SPLITS, "cold"):
        assert dataset.manifest["num_interactions"][split] == len(pairs_of(dataset, split))
    total = dataset.manifest["num_interactions"], dataset.manifest["duplicates_merged"]
    assert sum(total[0].values()) + sum(total[1].values()) == 3000
    if is_split:  # the source's own splits lose these pairs and nothing else
        assert all(pairs_of(dataset, s) == {(u, i) for u, i in pairs_of(plain, s) if i not in cold} for s in SPLITS)


def test_the_draw_is_seeded_and_independent_of_the_rows_order(tmp_path):
    catalog = make_catalog(True)
    first, again, other = (cold_items(written(tmp_path / name, catalog, seed=seed)) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert first == again != other
    turned = dataclasses.replace(catalog, interactions={s: (u[::-1], i[::-1]) for s, (u, i) in catalog.interactions.items()})
    assert cold_items(written(tmp_path / "d", turned, seed=1)) == first


def test_interactions_in_runs_of_users_are_held_out_alike(tmp_path, monkeypatch):
    catalog = make_catalog(False)
    whole = written(tmp_path / "whole", catalog)
    monkeypatch.setattr(dataset_writer, "PAIR_BYTES", 2**20 // 100)
    parts = written(tmp_path / "parts", catalog, memory_mib=1)
    assert all(pairs_of(whole, split) == pairs_of(parts, split) for split in (*SPLITS, "cold"))


def test_without_cold_items_the_dataset_is_as_before(tmp_path):
    catalog = make_catalog(True)
    dataset = written(tmp_path / "d", catalog, 0.0)
    assert "num_cold_items" not in dataset.manifest
    assert list(dataset.manifest["num_interactions"]) == sorted(SPLITS)
    assert not dataset.has_split("cold")
    assert [len(column) for column in dataset.interactions("cold")] == [0, 0]


def test_a_user_whose_items_are_all_cold_keeps_no_train_pair(tmp_path):
    config = SourceConfig(format="parquet", path="x")
    pairs = np.array([0, 0, 1, 1, 1]), np.array([0, 1, 2, 3, 4])
    features = {"visual": (np.eye(5, dtype=np.float32), np.arange(5) < 2)}  # the items of user 0 alone can be cold
    catalog = Catalog(ids_of(["a", "b"]), ids_of(list("01234")), Unsplit(pairs, config), features)
    dataset = written(tmp_path / "d", catalog, 0.99)
    assert pairs_of(dataset, "cold") == {(0, 0), (0, 1)}
    assert dataset.manifest["users_without_train"] == 1
    assert dataset.csr("train").degrees.tolist() == [0, 3]


@pytest.mark.parametrize(
    ("change", "share", "parts"),
    [
        ({"features": {}}, 0.1, ("source.cold_items=0.1", "the source has none", "source.modalities")),
        ({}, 0.001, ("source.cold_items=0.001", "less than one of the 45 items")),
        (
            {"features": {"visual": (np.ones((NUM_ITEMS, 2), np.float32), np.zeros(NUM_ITEMS, bool))}},
            0.5,
            ("less than one of the 0 items",),
        ),
        (
            {"features": {"visual": (np.ones((NUM_ITEMS, 2), np.float32), np.ones(NUM_ITEMS, bool))}},
            0.999,
            ("leaves no train interaction",),
        ),
    ],
)
def test_what_cannot_be_held_out_is_refused(tmp_path, fails, change, share, parts):
    with fails(*parts):
        written(tmp_path / "d", dataclasses.replace(make_catalog(True), **change), share)
    assert not has_artifact(str(tmp_path / "d"))


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_the_share_has_bounds(fails, share):
    with fails("source.cold_items="):
        SourceConfig(cold_items=share)


def test_a_pair_in_two_splits_is_found_among_cold_items_too(tmp_path, fails):
    pairs = {"train": (np.array([0, 1]), np.array([0, 1])), "test": (np.array([0]), np.array([0]))}
    features = {"visual": (np.eye(2, dtype=np.float32), np.array([True, False]))}
    with fails("a pair in both train and test"):
        written(tmp_path / "d", Catalog(ids_of(["a", "b"]), ids_of(["0", "1"]), pairs, features), 0.9)
