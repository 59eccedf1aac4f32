"""Raw catalogs that are wrong end in an InputError that names the file, row or setting and says what to do."""

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from promptmm.graph_store.config import SourceConfig
from promptmm.graph_store.dataset_writer import write_dataset
from promptmm.graph_store.sources.formats import load_catalog


def load(format, folder, **settings):
    return load_catalog(SourceConfig(format=format, path=str(folder), **settings))


def write_interactions(folder, **columns):
    pq.write_table(pa.table({"user": ["a", "b"], "item": ["x", "y"], **columns}), folder / "interactions.parquet")


@pytest.mark.parametrize(
    ("format", "name"),
    [
        ("diffmm", "valMat.pkl"),
        ("promptmm", "test.json"),
        ("lightgcn", "train.txt"),
        ("parquet", "interactions.parquet"),
    ],
)
def test_missing_file(write_source, format, name, fails):
    folder = write_source(format)
    (folder / name).unlink()
    with fails(folder / name, "no such file; check source.path"):
        load(format, folder)


def test_missing_folder_and_feature_file(tmp_path, write_source, fails):
    with fails(f"source.path={tmp_path / 'nowhere'}: no such folder"):
        load("diffmm", tmp_path / "nowhere")
    with fails("pixels.npy: no such file; check source.modalities.visual"):
        load("diffmm", write_source("diffmm"), modalities={"visual": "pixels.npy"})
    folder = write_source("mmrec")
    (folder / "small.inter").unlink()
    with fails("expected one .inter file, there is none; name it in source.interactions"):
        load("mmrec", folder)


@pytest.mark.parametrize("shape", [(6,), (6, 3, 2), (6, 0)])
def test_features_of_the_wrong_shape(write_source, shape, fails):
    folder = write_source("diffmm")
    np.save(folder / "image_feat.npy", np.zeros(shape, np.float32))
    with fails("modality 'visual'", folder / "image_feat.npy", f"has shape {shape}, expected [items, dimensions]"):
        load("diffmm", folder)


@pytest.mark.parametrize("format", ["diffmm", "mmrec", "promptmm"])
def test_features_with_the_wrong_row_count(write_source, format, fails):
    folder = write_source(format)
    name = next(folder.glob("*_feat.npy"))
    np.save(name, np.zeros((5, 3), np.float32))
    with fails("modality 'visual'", name, "has 5 rows, the catalog has 6 items; write one row for every item"):
        load(format, folder)


def test_modalities_that_disagree_about_the_items(write_source, fails):
    folder = write_source("mmrec")
    np.save(folder / "text_feat.npy", np.zeros((7, 2), np.float32))
    with fails("modality 'visual'", "has 6 rows, the catalog has 7 items"):
        load("mmrec", folder)


@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "an infinite value")])
def test_features_that_are_not_finite(write_source, tmp_path, small, value, word, fails):
    rows = np.ones((6, 3), np.float32)
    rows[4, 1] = value
    folder = write_source("diffmm")
    np.save(folder / "image_feat.npy", rows)
    with fails("modality 'visual': row 4 of", folder / "image_feat.npy", f"has {word}"):
        load("diffmm", folder)
    pq.write_table(pa.table({"item": [5, 4, 3, 2, 1, 0], "vector": rows.tolist()}), tmp_path / "visual.parquet")
    with fails("modality 'visual': row 4 of", "visual.parquet", f"has {word}"):
        load("parquet", write_source("parquet"), modalities={"visual": str(tmp_path / "visual.parquet")})
    catalog = dataclasses.replace(small, features={"visual": (rows, np.ones(6, bool))})
    with fails("modality 'visual': row 4", f"has {word}"):
        write_dataset(str(tmp_path / "dataset"), catalog, {})
    assert not (tmp_path / "dataset").exists()


def test_npy_that_is_truncated_or_holds_objects(write_source, fails):
    folder = write_source("diffmm")
    path = folder / "image_feat.npy"
    path.write_bytes(path.read_bytes()[:-10])
    with fails("modality 'visual'", path, "is not a readable .npy file of numbers"):
        load("diffmm", folder)
    np.save(path, np.array([[{}]], object), allow_pickle=True)
    with fails("modality 'visual'", path, "is not a readable .npy file of numbers"):
        load("diffmm", folder)
    np.save(path, np.array([["a"]] * 6))
    with fails("modality 'visual'", path, "holds <U1, expected numbers"):
        load("diffmm", folder)


def test_ids_out_of_range(write_source, tmp_path, small, fails):
    folder = write_source("promptmm")
    (folder / "val.json").write_text(json.dumps({"0": [2], "1": [6]}))
    with fails(folder / "val.json", "item 6 is out of range, expected 0 to 5"):
        load("promptmm", folder)
    (folder / "val.json").write_text(json.dumps({"4": [2]}))
    with fails(folder / "val.json", "user 4 is out of range, expected 0 to 3"):
        load("promptmm", folder)
    folder = write_source("lightgcn")
    (folder / "test.txt").write_text("0 5\n2 -1\n")
    with fails(folder / "test.txt", "item -1 is out of range"):
        load("lightgcn", folder)
    (folder / "test.txt").write_text("123456789 5\n")
    with fails(folder / "test.txt", "an id is 123456789, but this format numbers users and items 0, 1, 2, ..."):
        load("lightgcn", folder)
    splits = {**small.interactions, "test": (np.array([0, 1]), np.array([5, 6]))}
    with fails("split 'test', row 1: item 6 is out of range, the catalog has 6 items (0 to 5)"):
        write_dataset(str(tmp_path / "dataset"), dataclasses.replace(small, interactions=splits), {})


@pytest.mark.parametrize(
    ("format", "name", "content"),
    [
        ("lightgcn", "test.txt", ""),
        ("lightgcn", "valid.txt", "0\n1\n"),
        ("promptmm", "train.json", ""),
        ("promptmm", "val.json", '{"0": []}'),
        ("csv", "interactions.csv", "user,item,split\n"),
        ("mmrec", "small.inter", "userID\titemID\tx_label\n"),
    ],
)
def test_empty_split_file(write_source, format, name, content, fails):
    folder = write_source(format)
    (folder / name).write_text(content)
    with fails(folder / name, "no interactions in it; the file is empty"):
        load("parquet" if format == "csv" else format, folder)


def test_a_pair_in_two_splits(write_source, tmp_path, fails):
    folder = write_source("mmrec")
    with open(folder / "small.inter", "a") as file:
        file.write("1\t2\t2\n")
    with fails("user '1' and item '2' are a pair in both train and test (1 such pairs); keep each pair in one split"):
        write_dataset(str(tmp_path / "dataset"), load("mmrec", folder), {})


def test_an_interaction_or_a_vector_for_an_unknown_item(tmp_path, fails):
    write_interactions(tmp_path, split=["train", "train"])
    pq.write_table(pa.table({"item": ["x"]}), tmp_path / "items.parquet")
    with fails("interactions.parquet, row 1: names item 'y', which is not in", "items.parquet; add it there"):
        load("parquet", tmp_path)
    pq.write_table(pa.table({"item": ["x", "y"]}), tmp_path / "items.parquet")
    pq.write_table(pa.table({"item": ["x", "z"], "vector": [[1.0], [2.0]]}), tmp_path / "text.parquet")
    with fails("text.parquet, row 1: names item 'z', which is not in"):
        load("parquet", tmp_path, modalities={"textual": "text.parquet"})


def test_columns_and_values_of_tables(tmp_path, fails):
    write_interactions(tmp_path)
    with fails("interactions.parquet: no column 'who', it has user, item; name the right one in source.user_column"):
        load("parquet", tmp_path, user_column="who")
    with fails("no column 'fold'", "source.split_column"):
        load("parquet", tmp_path, split_column="fold")
    with fails("source.split=time:", "has no timestamps; name their column in source.timestamp_column"):
        load("parquet", tmp_path, split="time")
    write_interactions(tmp_path, split=["train", "holdout"])
    with fails("interactions.parquet, row 1: split is 'holdout', expected train, validation or test"):
        load("parquet", tmp_path)
    write_interactions(tmp_path, item=["x", None])
    with fails("interactions.parquet, row 1: no id in column 'item'"):
        load("parquet", tmp_path)
    write_interactions(tmp_path, item=[0.5, 1.5])
    with fails("column 'item' holds double; ids must be integers or strings"):
        load("parquet", tmp_path)


def test_vectors_of_tables(tmp_path, fails):
    write_interactions(tmp_path)

    def write(items, vectors):
        pq.write_table(pa.table({"item": items, "vector": vectors}), tmp_path / "text.parquet")
        return load("parquet", tmp_path, modalities={"textual": "text.parquet"})

    with fails("modality 'textual': row 1 of", "text.parquet has 1 numbers, expected 2"):
        write(["x", "y"], [[1.0, 2.0], [1.0]])
    with fails("modality 'textual'", "text.parquet has several rows for item 'x'; keep one"):
        write(["x", "x"], [[1.0], [2.0]])
    with fails("modality 'textual': column 'vector' of", "expected lists of numbers"):
        write(["x", "y"], [1.0, 2.0])
    with fails("modality 'textual': row 1 of", "has NaN"):
        write(["x", "y"], [[1.0], [None]])
    with fails("modality 'textual'", "has no vectors; remove it from source.modalities"):
        write(["x", "y"], pa.array([None, None], pa.list_(pa.float32())))


def test_text_where_numbers_belong(write_source, fails):
    folder = write_source("lightgcn")
    (folder / "train.txt").write_text("0 1\n1 two\n")
    with fails(folder / "train.txt", "line 2: expected numbers, user item item"):
        load("lightgcn", folder)
    folder = write_source("mmrec")
    (folder / "small.inter").write_text("userID\titemID\tx_label\n0\t1\t0\n0\tb\t0\n")
    with fails("small.inter, row 1: itemID is 'b', expected a number from 0"):
        load("mmrec", folder)
    folder = write_source("promptmm")
    (folder / "train.json").write_text('{"0": [1, "x"]}')
    with fails(folder / "train.json", "user '0'", "numbered from 0"):
        load("promptmm", folder)
    (folder / "train.json").write_text('{"0": [1')
    with fails(folder / "train.json", "not valid JSON"):
        load("promptmm", folder)
    (folder / "train.json").write_text('{"a":' * 100_000)
    with fails(folder / "train.json", "not valid JSON"):
        load("promptmm", folder)
    (folder / "train.json").write_text(f'{{"{"9" * 5000}": [1]}}')
    with fails(folder / "train.json", "an id is more than"):
        load("promptmm", folder)


@pytest.mark.parametrize("name", ["interactions.parquet", "visual.parquet"])
def test_truncated_parquet(write_source, name, fails):
    folder = write_source("parquet")
    (folder / name).write_bytes((folder / name).read_bytes()[:-20])
    with fails(folder / name, "cannot be read", "it may be truncated"):
        load("parquet", folder, modalities={"visual": "visual.parquet"})


def test_features_of_other_ids_than_the_interactions(tmp_path, fails):
    """Ids that are written in another way would make a catalog of twice the items, half of them without features."""
    write_interactions(tmp_path)
    pq.write_table(pa.table({"item": ["X", "Y"], "vector": [[1.0, 0.0], [0.0, 1.0]]}), tmp_path / "visual.parquet")
    named = {"visual": "visual.parquet"}
    with fails(tmp_path / "visual.parquet", "none of its 2 items has an interaction in", "it names 'X', and the interactions 'x'"):
        load("parquet", tmp_path, modalities=named)
    pq.write_table(pa.table({"item": ["x", "y", "X", "Y"]}), tmp_path / "items.parquet")
    assert len(load("parquet", tmp_path, modalities=named).item_ids) == 4  # the list says that they are items of their own
