"""The dataset artifact: what is written is what is read."""

import dataclasses
import functools
from functools import partial

import numpy as np
import pytest
import torch
from promptmm.core.errors import InputError, RunError
from promptmm.core.sides import ITEMS, USERS
from promptmm.graph_store import catalog as catalog_module
from promptmm.graph_store import dataset_writer
from promptmm.graph_store.catalog import Catalog, Unsplit, ids_of
from promptmm.graph_store.config import SourceConfig
from promptmm.graph_store.dataset import Dataset, ModalityInfo, open_dataset
from promptmm.graph_store.dataset_writer import write_dataset
from promptmm.graph_store.external import scratch


def test_round_trip(tmp_path, small):
    url = str(tmp_path / "dataset")
    manifest = write_dataset(url, small, {"format": "test"})
    dataset = open_dataset(url)
    assert manifest == dataset.manifest
    assert manifest["source"] == {"format": "test"}
    assert (dataset.num_users, dataset.num_items) == (4, 6)
    assert dataset.user_ids() == small.user_ids.to_pylist()
    assert dataset.item_ids() == small.item_ids.to_pylist()
    assert dataset.modalities == {"visual": ModalityInfo(3, "float16", 0)}
    users, items = dataset.interactions("test")
    assert users.dtype == items.dtype == np.int64
    assert (users.tolist(), items.tolist()) == ([0, 2], [5, 0])
    assert (manifest["users_without_train"], manifest["items_without_train"]) == (0, 1)


def test_duplicates_are_merged_counted_and_pairs_sorted(tmp_path, small):
    pairs = np.array([3, 0, 3, 0, 0]), np.array([1, 4, 1, 2, 4])
    manifest = write_dataset(str(tmp_path / "d"), dataclasses.replace(small, interactions={"train": pairs}), {})
    users, items = open_dataset(str(tmp_path / "d")).interactions("train")
    assert list(zip(users, items)) == [(0, 2), (0, 4), (3, 1)]
    assert manifest["duplicates_merged"] == {"train": 2, "validation": 0, "test": 0}
    assert manifest["num_interactions"] == {"train": 3, "validation": 0, "test": 0}


def test_rows_of_some_users_and_degrees_are_read_in_pieces(tmp_path, small, monkeypatch):
    rng = np.random.default_rng(0)
    users, items = np.divmod(rng.choice(24, 15, replace=False), 6)
    write_dataset(str(tmp_path / "d"), dataclasses.replace(small, interactions={"train": (users, items)}), {})
    dataset = open_dataset(str(tmp_path / "d"))
    monkeypatch.setattr(Dataset, "pair_chunks", functools.partialmethod(Dataset.pair_chunks, rows=4))
    whole = dataset.csr("train")
    for some in ([0, 1, 2, 3], [1, 3], [2], []):
        found, expected = (each(torch.tensor(some, dtype=torch.int64)) for each in (partial(dataset.csr_of, "train"), whole.select))
        assert found.pointers.tolist() == expected.pointers.tolist()
        assert found.columns.tolist() == expected.columns.tolist()
        assert (found.num_columns, found.columns.dtype) == (6, torch.int64)
    assert dataset.degrees("train", USERS).tolist() == np.bincount(users, minlength=4).tolist()
    assert dataset.degrees("train", ITEMS).tolist() == np.bincount(items, minlength=6).tolist()
    assert dataset.csr_of("test", torch.tensor([0, 3])).degrees.tolist() == [0, 0]
    assert dataset.degrees("test", ITEMS).tolist() == [0] * 6
    for read in (
        partial(dataset.without("train").csr_of, "train", torch.tensor([0])),
        partial(dataset.without("train").degrees, "train", ITEMS),
    ):
        with pytest.raises(RunError, match="train split is withheld"):
            read()


def test_an_absent_split_is_empty(tmp_path, small):
    write_dataset(str(tmp_path / "d"), dataclasses.replace(small, interactions={"train": small.interactions["train"]}), {})
    dataset = open_dataset(str(tmp_path / "d"))
    assert dataset.has_split("train")
    assert not dataset.has_split("validation")
    assert [len(column) for column in dataset.interactions("validation")] == [0, 0]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int64"])
def test_features_of_several_files_and_chunks(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(catalog_module, "CHUNK_ROWS", 4)
    monkeypatch.setattr(dataset_writer, "FILE_ROWS", 8)
    rng = np.random.default_rng(0)
    rows, present = (100 * rng.standard_normal((21, 5))).astype(dtype), rng.random(21) > 0.3
    if dtype != "int64":
        rows[~present] = np.nan  # whatever stands in a missing row does not matter
    catalog = Catalog(
        ids_of(["u"]), ids_of([str(i) for i in range(21)]), {"train": (np.zeros(1, int), np.zeros(1, int))}, {"text": (rows, present)}
    )
    url = str(tmp_path / "dataset")
    manifest = write_dataset(url, catalog, {})
    dataset = open_dataset(url)
    assert sorted(name for name in manifest["files"] if name.startswith("features")) == [
        f"features/text/part-0000{part}.parquet" for part in range(3)
    ]
    stored = "float16" if dtype == "float16" else "float32"
    assert dataset.modalities["text"] == ModalityInfo(5, stored, int((~present).sum()))
    assert [start for start, _, _ in dataset.feature_chunks("text")] == [0, 4, 8, 12, 16, 20]
    got, got_present = dataset.features("text")
    assert got.dtype == stored
    np.testing.assert_array_equal(got_present, present)
    np.testing.assert_array_equal(got, np.where(present[:, None], rows, 0).astype(stored))


def test_the_same_catalog_gives_the_same_bytes(tmp_path, small):
    for name in ("a", "b"):
        write_dataset(str(tmp_path / name), small, {"seed": 1})
    first, second = ((tmp_path / name / "manifest.json").read_bytes() for name in ("a", "b"))
    assert first == second
    assert open_dataset(str(tmp_path / "a")).digest == open_dataset(str(tmp_path / "b")).digest


def test_a_remote_dataset_is_read_through_the_cache(tmp_path, small):
    write_dataset("memory://datasets/small", small, {})
    dataset = open_dataset("memory://datasets/small", cache_dir=str(tmp_path))
    np.testing.assert_array_equal(dataset.features("visual")[0], small.features["visual"][0])
    assert dataset.folder.is_relative_to(tmp_path)


def random_pairs(count: int = 3000) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    return rng.integers(0, 40, count), rng.integers(0, 60, count)


@pytest.mark.parametrize("kind", ["random", "time"])
def test_more_interactions_than_memory_holds_are_split_and_sorted_alike(tmp_path, monkeypatch, kind):
    pairs, times = random_pairs(), np.random.default_rng(6).integers(0, 1000, 3000)
    source = SourceConfig(split=kind, format="parquet", path="x", seed=3)
    catalog = Catalog(ids_of(list(map(str, range(40)))), ids_of(list(map(str, range(60)))), Unsplit(pairs, source, times))
    whole = write_dataset(str(tmp_path / "whole"), catalog, {})
    monkeypatch.setattr(dataset_writer, "PAIR_BYTES", 2**20 // 100)  # 100 pairs a MiB
    parts = write_dataset(str(tmp_path / "parts"), catalog, {}, memory_mib=1)
    assert sum(whole["num_interactions"].values()) + sum(whole["duplicates_merged"].values()) == 3000
    for fact in ("num_interactions", "duplicates_merged", "users_without_train", "items_without_train"):
        assert whole[fact] == parts[fact]
    for split in ("train", "validation", "test"):
        for mine, theirs in zip(
            open_dataset(str(tmp_path / "whole")).interactions(split), open_dataset(str(tmp_path / "parts")).interactions(split)
        ):
            np.testing.assert_array_equal(mine, theirs)


def test_a_pair_in_two_splits_is_found_in_any_run(tmp_path, monkeypatch):
    users, items = random_pairs()
    train = items < 50
    splits = {"train": (users[train], items[train]), "test": (np.append(users[~train], 39), np.append(items[~train], 3))}
    splits["train"] = (np.append(splits["train"][0], 39), np.append(splits["train"][1], 3))
    monkeypatch.setattr(dataset_writer, "PAIR_BYTES", 2**20 // 100)
    catalog = Catalog(ids_of(list(map(str, range(40)))), ids_of(list(map(str, range(60)))), splits)
    with pytest.raises(InputError, match=r"user '39' and item '3' are a pair in both train and test \(1 such pairs\)"):
        write_dataset(str(tmp_path / "d"), catalog, {}, memory_mib=1)
    assert not (tmp_path / "d").exists()


def test_features_too_large_for_float32(tmp_path, small, fails):
    catalog = dataclasses.replace(small, features={"visual": (np.full((6, 3), 1e300), np.ones(6, bool))})
    with fails("modality 'visual': row 0", "an infinite value"):
        write_dataset(str(tmp_path / "dataset"), catalog, {})


def test_empty_or_missing_split_in_a_catalog(tmp_path, small, fails):
    empty = np.empty(0, np.int64)
    with fails("split 'test' is empty"):
        write_dataset(str(tmp_path / "d"), dataclasses.replace(small, interactions={**small.interactions, "test": (empty, empty)}), {})
    with fails("no train split"):
        write_dataset(str(tmp_path / "d"), dataclasses.replace(small, interactions={"test": small.interactions["test"]}), {})


def test_a_dataset_whose_checksum_does_not_match(tmp_path, small, fails):
    write_dataset(str(tmp_path / "d"), small, {})
    path = tmp_path / "d" / "interactions" / "train.parquet"
    content = path.read_bytes()
    for damaged in (content[:-5], content[:10] + bytes([content[10] ^ 1]) + content[11:]):
        path.write_bytes(damaged)
        with fails("interactions/train.parquet: checksum does not match the manifest"):
            open_dataset(str(tmp_path / "d"))
    with fails("no complete dataset here"):
        open_dataset(str(tmp_path / "nowhere"))


def test_a_scratch_file_without_room_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match=f"{tmp_path} has no room for a scratch file of 4,398,046,511,104.0 MiB"):
        scratch(np.uint8, 1 << 62, folder=tmp_path)
    with pytest.raises(InputError, match=r"TMPDIR\) has no room"):
        scratch(np.uint8, 1 << 62)


def test_rows_are_mapped_and_equal_those_in_memory(tmp_path, small):
    write_dataset(str(tmp_path / "d"), small, {})
    dataset = open_dataset(str(tmp_path / "d"))
    for split in ("train", "validation", "test"):
        mapped, whole = dataset.rows(split), dataset.csr(split)
        assert mapped.pointers.tolist() == whole.pointers.tolist()
        assert mapped.columns.tolist() == whole.columns.tolist()
        assert mapped.num_columns == whole.num_columns
    assert dataset.rows("train").columns.dtype == torch.int32


def test_rows_of_a_dataset_without_their_file_are_read_into_memory(tmp_path, small):
    write_dataset(str(tmp_path / "d"), small, {})
    dataset = open_dataset(str(tmp_path / "d"))
    (dataset.folder / "interactions" / "train.rows.safetensors").unlink()
    assert dataset.rows("train").columns.tolist() == dataset.csr("train").columns.tolist()
    with pytest.raises(RunError, match="withheld"):
        dataset.without("test").rows("test")
