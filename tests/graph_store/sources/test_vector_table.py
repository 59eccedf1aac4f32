"""Vectors that another model exported: columns are described, ids are looked up, rows are put in the dataset's order."""

import re

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from promptmm.core.config.vectors import VectorsConfig
from promptmm.core.errors import InputError
from promptmm.core.sides import ITEMS, USERS
from promptmm.core.vector_files import SideFile, VectorFiles
from promptmm.graph_store.catalog import Catalog, ids_of
from promptmm.graph_store.dataset import open_dataset
from promptmm.graph_store.dataset_writer import write_dataset
from promptmm.graph_store.sources import vector_table
from promptmm.graph_store.sources.vector_table import place_rows, read_rows

USER_IDS, ITEM_IDS = ["u1", "u2", "u3", "u4"], ["10", "11", "12"]  # the last user and the last item have no train interaction
FINAL = np.arange(8, dtype=np.float32).reshape(4, 2) + 0.5


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dataset") / "d"
    pairs = (np.array([0, 1, 2]), np.array([0, 1, 1]))
    write_dataset(str(folder), Catalog(ids_of(USER_IDS), ids_of(ITEM_IDS), {"train": pairs}, {}), {})
    return open_dataset(str(folder))


def write(path, **columns) -> SideFile:
    """Writes a file of users' vectors, and describes it."""
    pq.write_table(pa.table(columns), path)
    return SideFile.of(USERS, str(path))


def read(file, dataset, kept=None):
    placed = place_rows(file, dataset)
    return read_rows(placed, torch.ones(dataset.num_users, dtype=torch.bool) if kept is None else kept)


def refused(text):
    return pytest.raises(InputError, match=re.escape(text))


def lists(values, kind=None):
    return pa.array(list(values), kind or pa.list_(pa.float32()))


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64()])
@pytest.mark.parametrize("form", [pa.list_, pa.large_list, lambda kind: pa.list_(kind, 2)], ids=["list", "large list", "fixed size"])
def test_rows_of_any_order_and_form_are_put_in_the_dataset_s_order(tmp_path, dataset, monkeypatch, kind, form):
    monkeypatch.setattr(vector_table, "IDS_AT_A_TIME", 2)
    monkeypatch.setattr(vector_table, "feature_chunk_rows", lambda row_bytes: 3)
    order = [2, 0, 3, 1]
    values = FINAL.astype(np.float16 if kind == pa.float16() else np.float32)[order]
    file = write(tmp_path / "u.parquet", id=[USER_IDS[n] for n in order], name=["x"] * 4, vector=lists(values, form(kind)),
                 **{"modal.text": lists(-values, form(kind))})  # fmt: skip
    assert (file.id_column, file.dims, file.unread) == ("id", {"final": 2, "modal.text": 2}, ("name",))
    rows = read(file, dataset)
    everyone = torch.arange(4)
    assert rows["final"].pull(everyone).tolist() == FINAL.tolist()
    assert rows["modal.text"].pull(everyone).tolist() == (-FINAL).tolist()
    assert rows["final"].pull(everyone).dtype == torch.float32


def test_some_users_alone_may_be_kept(tmp_path, dataset):
    file = write(tmp_path / "u.parquet", user=USER_IDS, final=lists(FINAL))
    rows = read(file, dataset, torch.tensor([True, False, False, True]))["final"]
    assert rows.rows.shape == (2, 2)
    assert rows.pull(torch.tensor([3, 0])).tolist() == FINAL[[3, 0]].tolist()


def test_a_folder_of_parts_and_another_file_system(dataset):
    parts = fsspec.filesystem("memory")
    for number in range(2):
        some = slice(2 * number, 2 * number + 2)
        with parts.open(f"/vectors/users/part-{number}.parquet", "wb") as file:
            pq.write_table(pa.table({"user": USER_IDS[some], "final": lists(FINAL[some])}), file)
    rows = read(SideFile.of(USERS, "memory://vectors/users"), dataset)["final"]
    assert rows.pull(torch.arange(4)).tolist() == FINAL.tolist()


def test_integers_are_ids_as_the_source_writes_them(tmp_path, dataset):
    pq.write_table(pa.table({"item": [12, 10, 11], "final": lists(FINAL[:3])}), tmp_path / "i.parquet")
    placed = place_rows(SideFile.of(ITEMS, str(tmp_path / "i.parquet")), dataset)
    assert placed.index.tolist() == [2, 0, 1]
    assert placed.remarks() == []


def test_ids_that_are_unknown_are_left_out_and_untouched_ones_without_a_vector_get_zeros(tmp_path, dataset):
    file = write(tmp_path / "u.parquet", user=["zoe", "u3", "u2", "u1", "yan"], final=lists([[np.nan, 0], *FINAL[[2, 1, 0]], [1, 1, 1]]))
    placed = place_rows(file, dataset)
    first, second = placed.remarks()
    assert "2 rows of users that the dataset does not know are left out, such as 'zoe'" in first
    assert "1 users have no vector and no train interaction, such as 'u4': theirs are zero" in second
    rows = read(file, dataset)["final"].pull(torch.arange(4))
    assert rows.tolist() == [*FINAL[:3].tolist(), [0, 0]]


def test_ids_that_do_not_fit_the_dataset(tmp_path, dataset):
    path = tmp_path / "u.parquet"
    with refused(f"{path}: 1 users with train interactions have no vector, such as 'u2'; write a row for each"):
        place_rows(write(path, user=["u1", "u3", "u4"], final=lists(FINAL[:3])), dataset)
    with refused(f"teacher.vectors.users={path}: the dataset knows none of its 2 ids: the file has 'U1', and the dataset 'u1'"):
        place_rows(write(path, user=["U1", "U2"], final=lists(FINAL[:2])), dataset)
    with refused("row 3: no id in column 'user'"):
        place_rows(write(path, user=["u1", "u2", "u3", None], final=lists(FINAL)), dataset)
    with refused("column 'user' holds double; ids must be integers or strings"):
        place_rows(write(path, user=[1.0, 2.0], final=lists(FINAL[:2])), dataset)


@pytest.mark.parametrize("at_a_time", [2, 100])
def test_an_id_that_occurs_twice(tmp_path, dataset, monkeypatch, at_a_time):
    monkeypatch.setattr(vector_table, "IDS_AT_A_TIME", at_a_time)
    file = write(tmp_path / "u.parquet", user=["u1", "u2", "no", "no", "u3", "u2"], final=lists(FINAL[[0, 1, 1, 1, 2, 1]]))
    with refused("row 5: user 'u2' has a row already; keep one row of each"):
        place_rows(file, dataset)


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        (None, "row 2: no vector in column 'final'; fill it in"),
        ([1.0], "row 2: a vector of 1 numbers in column 'final', and the first row has 2"),
        ([1.0, None], "row 2: the vector in column 'final' has a number that is missing, NaN or infinite"),
        ([1.0, np.nan], "row 2: the vector in column 'final' has a number that is missing, NaN or infinite"),
        ([1e39, 0.0], "row 2: the vector in column 'final' has a number that is missing, NaN or infinite as a 32 bit float"),
    ],
)
def test_vectors_that_are_none(tmp_path, dataset, vector, message):
    values = [*FINAL[:2].tolist(), vector, FINAL[3].tolist()]
    file = write(tmp_path / "u.parquet", user=USER_IDS, final=lists(values, pa.list_(pa.float64())))
    with refused(message):
        read(file, dataset)


def test_a_float16_that_is_missing(tmp_path, dataset):
    file = write(tmp_path / "u.parquet", user=USER_IDS, final=lists([*FINAL.astype(np.float16)[:3], [None, np.float16(1)]],
                 pa.list_(pa.float16())))  # fmt: skip
    with refused("row 3: the vector in column 'final' has a number that is missing"):
        read(file, dataset)


def test_files_of_another_form(tmp_path):
    path, whole = tmp_path / "u.parquet", {"user": ["u1"], "final": lists([[1.0]])}
    with refused(f"teacher.vectors.users={path}: no such file or folder"):
        SideFile.of(USERS, str(path))
    path.write_text("user,final\nu1,1\n")
    with refused(f"{path}: cannot be read as Parquet"):
        SideFile.of(USERS, str(path))
    (tmp_path / "empty").mkdir()
    with refused("no Parquet file in this folder"):
        SideFile.of(USERS, str(tmp_path / "empty"))
    for columns, message in (
        ({"item": ["u1"], "final": lists([[1.0]])}, "no column user or id, it has item, final"),
        ({"user": ["u1"], "embedding": lists([[1.0]])}, "no column final or vector, it has user, embedding"),
        ({**whole, "vector": lists([[1.0]])}, "both columns final and vector are there"),
        ({"user": ["u1"], "final": [1.0]}, "column 'final' holds double; write lists of 16, 32 or 64 bit floats"),
        ({**whole, "modal.text": pa.array([[1]], pa.list_(pa.int64()))}, "column 'modal.text' holds list"),
        ({**whole, "modal.a.b": lists([[1.0]])}, "column 'modal.a.b': use letters, digits, - and _ only"),
        ({"user": pa.array([], pa.string()), "final": lists([])}, "the file has no rows"),
        ({"user": ["u1"], "final": lists([None])}, "row 0: no vector in column 'final'"),
        ({"user": ["u1"], "final": lists([[]])}, "row 0: a vector without numbers in column 'final'"),
    ):
        with refused(message):
            write(path, **columns)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ({"final": [[1.0, 2.0, 3.0]]}, "vectors of 3 numbers in column 'final', and those of the users have 2 in"),
        ({"final": [[1.0, 2.0]], "modal.text": [[1.0]]}, "users.parquet: no column 'modal.text', which"),
    ],
)
def test_sides_that_do_not_fit_each_other(tmp_path, items, message):
    config = VectorsConfig(str(tmp_path / "users.parquet"), str(tmp_path / "items.parquet"))
    pq.write_table(pa.table({"user": ["u1"], "vector": lists([[1.0, 2.0]])}), config.users)
    pq.write_table(pa.table({"item": ["10"], **{name: lists(value) for name, value in items.items()}}), config.items)
    with refused(message):
        VectorFiles.of(config)


def test_modalities_of_several_lengths(tmp_path):
    config = VectorsConfig(str(tmp_path / "users.parquet"), str(tmp_path / "items.parquet"))
    columns = {"final": lists([[1.0]]), "modal.text": lists([[1.0, 2.0]]), "modal.image": lists([[1.0, 2.0, 3.0]])}
    for side, url in zip(("user", "item"), config.urls):
        pq.write_table(pa.table({side: ["1"], **columns}), url)
    with refused("vectors of 3 numbers in column 'modal.image', and of 2 in column 'modal.text'; write those of all modalities with one"):
        VectorFiles.of(config)
