"""Validation interactions that are drawn from train, and validation interactions that train in the end."""

import dataclasses

import numpy as np
import pytest
from promptmm.core.errors import InputError
from promptmm.graph_store.catalog import Catalog, Unsplit, ids_of
from promptmm.graph_store.config import SourceConfig
from promptmm.graph_store.dataset import Dataset, open_dataset
from promptmm.graph_store.dataset_writer import write_dataset
from promptmm.graph_store.joined import write_joined
from promptmm.graph_store.sources.formats import load_catalog
from promptmm.graph_store.splits import HoldOut

NUM_USERS, NUM_ITEMS = 400, 90


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    """Train and test interactions of users with 1 to 40 of them, some repeated; no validation split."""
    rng = np.random.default_rng(7)
    users = np.repeat(np.arange(NUM_USERS), rng.integers(1, 40, NUM_USERS))
    items = rng.integers(0, NUM_ITEMS, len(users))
    test = (users * 7 + items) % 5 == 0  # a function of the pair, so that repeats are of one split
    pairs = {"train": (users[~test], items[~test]), "test": (users[test], items[test])}
    return Catalog(ids_of([*map(str, range(NUM_USERS))]), ids_of([*map(str, range(NUM_ITEMS))]), pairs)


def written(folder, catalog: Catalog, memory_mib: int = 1024, **hold_out) -> Dataset:
    write_dataset(str(folder), catalog, {}, memory_mib, HoldOut(**hold_out))
    return open_dataset(str(folder))


def pairs_of(dataset: Dataset, split: str) -> set[tuple[int, int]]:
    return set(zip(*(column.tolist() for column in dataset.interactions(split))))


def test_a_share_of_every_users_train_interactions_validates(tmp_path, catalog):
    whole, held = written(tmp_path / "whole", catalog), written(tmp_path / "held", catalog, validation_from_train=0.25, seed=3)
    train, validation = pairs_of(held, "train"), pairs_of(held, "validation")
    assert not train & validation
    assert train | validation == pairs_of(whole, "train")
    assert pairs_of(held, "test") == pairs_of(whole, "test")
    before = np.bincount([user for user, _ in train | validation], minlength=NUM_USERS)
    taken = np.bincount([user for user, _ in validation], minlength=NUM_USERS)
    assert (np.abs(taken - before / 4) <= 0.5).all()
    assert (before - taken >= np.minimum(before, 1)).all()  # train keeps one


def test_the_draw_is_a_function_of_the_seed_and_of_no_memory(tmp_path, catalog):
    first, again, other = (
        pairs_of(written(tmp_path / name, catalog, memory_mib, validation_from_train=0.1, seed=seed), "validation")
        for name, memory_mib, seed in (("a", 1024, 0), ("b", 1, 0), ("c", 1024, 1))
    )
    assert first == again
    assert first != other


@pytest.mark.parametrize("rows", [1 << 20, 7])
def test_validation_interactions_join_train(tmp_path, catalog, monkeypatch, rows):
    monkeypatch.setattr("promptmm.graph_store.joined.GROUP_PAIRS", rows)
    whole, held = written(tmp_path / "whole", catalog), written(tmp_path / "held", catalog, validation_from_train=0.25)
    write_joined(str(tmp_path / "joined"), held)
    joined = open_dataset(str(tmp_path / "joined"))
    assert not joined.has_split("validation")
    for split in ("train", "test"):
        assert [column.tolist() for column in joined.interactions(split)] == [column.tolist() for column in whole.interactions(split)]
    counted = ("num_users", "num_items", "users_without_train", "items_without_train", "num_interactions", "duplicates_merged")
    assert {name: joined.manifest[name] for name in counted} == {name: whole.manifest[name] for name in counted}
    assert joined.manifest["joined"] == held.digest


def test_the_other_splits_and_the_features_of_a_joined_dataset_stay(tmp_path):
    source = SourceConfig(synthetic_num_users=60, synthetic_num_items=50, synthetic_missing=0.2)
    write_dataset(str(tmp_path / "first"), load_catalog(source), {}, 1024, HoldOut(cold_items=0.1))
    first = open_dataset(str(tmp_path / "first"))
    manifest = write_joined(str(tmp_path / "second"), first)
    second = open_dataset(str(tmp_path / "second"))
    train = [set(zip(*(column.tolist() for column in each.interactions("train")))) for each in (first, second)]
    assert train[1] == train[0] | pairs_of(first, "validation")
    unchanged = {name for name in first.manifest["files"] if "train" not in name and "validation" not in name}
    assert {"interactions/cold.parquet", "interactions/test.parquet"} < unchanged
    assert {name: manifest["files"][name] for name in unchanged} == {name: first.manifest["files"][name] for name in unchanged}
    assert manifest["num_cold_items"] == first.manifest["num_cold_items"]


@pytest.mark.parametrize(
    ("kind", "share", "message"),
    [
        ("unsplit", 0.1, "source.train_ratio and source.validation_ratio"),
        ("validated", 0.1, "the source has a validation split of its own"),
        ("plain", 0.001, "none is held out; raise it"),
    ],
)
def test_a_share_that_has_no_meaning_is_refused(tmp_path, catalog, kind, share, message):
    train = catalog.interactions["train"]
    interactions = {
        "unsplit": Unsplit(train, SourceConfig()),
        "validated": {**catalog.interactions, "validation": catalog.interactions["test"]},
        "plain": catalog.interactions,
    }[kind]
    with pytest.raises(InputError, match=message):
        written(tmp_path / "d", dataclasses.replace(catalog, interactions=interactions), validation_from_train=share)
