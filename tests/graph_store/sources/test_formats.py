"""Every source format yields the same catalog, on small files and on the real ones."""

import json

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from promptmm.core.errors import InputError
from promptmm.graph_store.catalog import SPLITS
from promptmm.graph_store.config import SourceConfig
from promptmm.graph_store.dataset import open_dataset
from promptmm.graph_store.dataset_writer import write_dataset
from promptmm.graph_store.sources import table_file
from promptmm.graph_store.sources.formats import load_catalog
from promptmm.graph_store.sources.safe_pickle import load_matrix
from promptmm.graph_store.sources.synthetic_writer import write_synthetic


def pairs_of(catalog, split=None):
    """(user, item, label) of every interaction, ordered; or the pairs of one split."""
    records = np.concatenate(list(catalog.rows()))
    if split is not None:
        records = records[records["label"] == SPLITS.index(split)]
        return records["user"], records["item"]
    return np.sort(records)


def written(config, folder):
    """The dataset of a source."""
    write_dataset(str(folder), load_catalog(config), {})
    return open_dataset(str(folder))


def assert_same(left, right):
    assert left.user_ids.equals(right.user_ids)
    assert left.item_ids.equals(right.item_ids)
    np.testing.assert_array_equal(pairs_of(left), pairs_of(right))
    assert left.features.keys() == right.features.keys()
    for modality, (rows, present) in left.features.items():
        np.testing.assert_array_equal(rows, right.features[modality][0])
        np.testing.assert_array_equal(present, right.features[modality][1])
        assert rows.dtype == right.features[modality][0].dtype


@pytest.mark.parametrize("name", ["diffmm", "promptmm", "mmrec", "lightgcn", "parquet", "csv"])
def test_every_format_gives_the_same_catalog(name, write_source, small):
    is_table = name in ("parquet", "csv")
    config = SourceConfig(
        format="parquet" if is_table else name,
        path=str(write_source(name)),
        modalities={"visual": "visual.parquet"} if is_table else None,
    )
    assert_same(load_catalog(config), small)


def test_a_remote_source_is_fetched(write_source, small):
    folder = write_source("lightgcn")
    fsspec.filesystem("memory").put(str(folder), "/remote-source", recursive=True)
    assert_same(load_catalog(SourceConfig(format="lightgcn", path="memory://remote-source")), small)


def test_no_modalities_on_request(write_source):
    config = SourceConfig(format="diffmm", path=str(write_source("diffmm")), modalities={})
    assert load_catalog(config).features == {}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("kind", ["coo", "csr", "csc"])
def test_matrices_of_every_kind_and_pickle_protocol(tmp_path, save_matrix, small, kind, protocol):
    save_matrix(tmp_path / "matrix.pkl", "train", kind, protocol)
    matrix = load_matrix(tmp_path / "matrix.pkl")
    assert matrix.shape == (small.num_users, small.num_items)
    assert sorted(zip(matrix.rows, matrix.columns)) == sorted(zip(*pairs_of(small, "train")))


def test_promptmm_without_matrix_and_items_at_the_end_that_nobody_took(write_source):
    folder = write_source("promptmm")
    (folder / "train_mat").unlink()
    np.save(folder / "visual_feat.npy", np.ones((8, 3), np.float32))
    assert load_catalog(SourceConfig(format="promptmm", path=str(folder))).num_items == 8


def test_lightgcn_without_validation(write_source):
    folder = write_source("lightgcn")
    (folder / "valid.txt").unlink()
    assert set(load_catalog(SourceConfig(format="lightgcn", path=str(folder))).interactions) == {"train", "test"}


def test_csv_keeps_raw_ids_as_they_are(tmp_path):
    (tmp_path / "interactions.csv").write_text("user,item,split\n007,b,train\n7,a,train\n")
    catalog = load_catalog(SourceConfig(format="parquet", path=str(tmp_path)))
    assert catalog.user_ids.to_pylist() == ["007", "7"]
    assert catalog.item_ids.to_pylist() == ["a", "b"]


def test_parquet_items_of_feature_files_and_missing_rows(tmp_path):
    pq.write_table(pa.table({"u": ["a", "b"], "i": ["x", "y"], "s": [0, 2]}), tmp_path / "log.parquet")
    vectors = pa.array([[1.0, 2.0], None, [5.0, 6.0]], pa.list_(pa.float32(), 2))
    pq.write_table(pa.table({"i": ["z", "y", "x"], "v": vectors}), tmp_path / "text.parquet")
    catalog = load_catalog(
        SourceConfig(
            format="parquet",
            path=str(tmp_path),
            interactions="log.parquet",
            modalities={"textual": "text.parquet"},
            user_column="u",
            item_column="i",
            split_column="s",
            vector_column="v",
        )
    )
    assert catalog.item_ids.to_pylist() == ["x", "y", "z"]
    rows, present = catalog.features["textual"]
    np.testing.assert_array_equal(rows, [[5, 6], [0, 0], [1, 2]])
    np.testing.assert_array_equal(present, [True, False, True])


def test_a_folder_of_parquet_parts(tmp_path):
    (tmp_path / "interactions.parquet").mkdir()
    for part, user in enumerate(["a", "b"]):
        table = pa.table({"user": [user], "item": ["x"], "split": ["train"]})
        pq.write_table(table, tmp_path / "interactions.parquet" / f"part-{part}.parquet")
    assert load_catalog(SourceConfig(format="parquet", path=str(tmp_path))).user_ids.to_pylist() == ["a", "b"]


def test_time_split_puts_the_latest_last_and_repeats_together(tmp_path):
    rows = [f"u,{item},{10 - item}" for item in range(10)] + ["u,9,99"]  # item 9 first at time 1, again at 99
    (tmp_path / "interactions.csv").write_text("\n".join(["user,item,timestamp", *rows]))
    dataset = written(SourceConfig(format="parquet", path=str(tmp_path), split="time"), tmp_path / "dataset")
    raw = dict(enumerate(dataset.item_ids()))
    assert [raw[item] for item in dataset.interactions("test")[1]] == ["0"]
    assert [raw[item] for item in dataset.interactions("validation")[1]] == ["1"]
    assert sorted(raw[item] for item in dataset.interactions("train")[1]) == ["2", "3", "4", "5", "6", "7", "8", "9"]
    assert dataset.manifest["duplicates_merged"]["train"] == 1


def test_synthetic_is_seeded_and_its_content_tells_about_taste(tmp_path):
    catalog = load_catalog(SourceConfig())
    assert (catalog.num_users, catalog.num_items) == (3000, 2000)
    assert {m: (rows.shape[1], rows.dtype.name) for m, (rows, _) in catalog.features.items()} == {
        "visual": (128, "float16"),
        "textual": (96, "float16"),
        "acoustic": (64, "float16"),
    }
    assert_same(catalog, load_catalog(SourceConfig()))
    dataset = written(SourceConfig(), tmp_path / "dataset")
    train_users, train_items = dataset.interactions("train")
    users, items = dataset.interactions("test")
    lift = {}
    for modality, (rows, present) in catalog.features.items():
        assert 0 < (~present).mean() < 0.1
        centred = rows.astype(np.float32) - rows[present].astype(np.float32).mean(0)
        profile = np.zeros((catalog.num_users, rows.shape[1]), np.float32)
        np.add.at(profile, train_users, centred[train_items] * present[train_items, None])
        scores = profile @ centred.T
        rank = (scores[users] > scores[users, items][:, None]).mean(axis=1)
        lift[modality] = 0.5 - rank[present[items]].mean()  # 0: an item taken is as any other
    assert lift["visual"] > 0.2
    assert lift["textual"] > 0.2
    assert abs(lift["acoustic"]) < 0.05
    assert load_catalog(SourceConfig(modalities={}, synthetic_num_users=50, synthetic_num_items=40)).features == {}


def test_synthetic_popularity_follows_its_power_law():
    config = SourceConfig(synthetic_taste=0.0, synthetic_num_clusters=1, synthetic_popularity=0.6, modalities={})
    users, items = load_catalog(config).interactions.pairs
    counts = np.sort(np.bincount(items, minlength=2000))[::-1]
    assert len(users) == pytest.approx(3000 * 20, rel=0.03)
    share = counts[:100].sum() / counts.sum()  # of a density r ** -0.6 on [1, 2001): (101 ** 0.4 - 1) / (2001 ** 0.4 - 1)
    assert share == pytest.approx((101**0.4 - 1) / (2001**0.4 - 1), abs=0.03)
    assert len(np.unique(users * 2000 + items)) == len(users)


def test_a_catalog_written_as_parquet_is_the_generated_one(tmp_path):
    settings = {"synthetic_num_users": 90, "synthetic_num_items": 70, "synthetic_dims": {"cover": 5, "sound": 3}, "seed": 4}
    made = load_catalog(SourceConfig(**settings))
    facts = write_synthetic(SourceConfig(**settings, path=str(tmp_path / "raw")), str(tmp_path / "raw"))
    assert (facts["num_users"], facts["num_items"], facts["num_interactions"]) == (90, 70, len(made.interactions.pairs[0]))
    read = load_catalog(SourceConfig(format="parquet", path=str(tmp_path / "raw"), modalities=facts["modalities"]))
    user, item = (ids.to_pylist() for ids in (made.user_ids, made.item_ids))
    user_of, item_of = ({name: place for place, name in enumerate(ids.to_pylist())} for ids in (read.user_ids, read.item_ids))
    expected = {(user_of[user[u]], item_of[item[i]]) for u, i in zip(*made.interactions.pairs)}
    assert set(zip(*(x.tolist() for x in read.interactions.pairs))) == expected
    order = [item_of[name] for name in item]
    for modality, (rows, present) in made.features.items():
        np.testing.assert_array_equal(read.features[modality][0][order], rows)
        np.testing.assert_array_equal(read.features[modality][1][order], present)


@pytest.mark.parametrize("name", ["interactions.parquet", "interactions.csv"])
def test_tables_are_read_in_pieces(tmp_path, monkeypatch, name):
    rng = np.random.default_rng(0)
    table = pa.table({"user": [f"u{n}" for n in rng.integers(0, 30, 500)], "item": [f"i{n}" for n in rng.integers(0, 40, 500)]})
    write = pq.write_table if name.endswith("parquet") else pa.csv.write_csv
    write(table, tmp_path / name)
    whole = load_catalog(SourceConfig(format="parquet", path=str(tmp_path)))
    monkeypatch.setattr(table_file, "ROW_BYTES", 2**20)  # 16 rows in 16 MiB
    monkeypatch.setattr(table_file, "_BATCH_ROWS", 16)
    assert_same(load_catalog(SourceConfig(format="parquet", path=str(tmp_path), memory_mib=16)), whole)
    gone = table.set_column(0, "user", pa.array([*table["user"].to_pylist()[:450], None, *table["user"].to_pylist()[451:]]))
    write(gone, tmp_path / name)
    with pytest.raises(InputError, match="row 450: no id in column 'user'"):
        load_catalog(SourceConfig(format="parquet", path=str(tmp_path), memory_mib=16))


def test_tiktok_is_the_same_from_diffmm_and_mmrec(real_data, tmp_path):
    folder = real_data("tiktok")
    features = {"visual": str(folder / "image_feat.npy"), "acoustic": str(folder / "audio_feat.npy")}
    diffmm = load_catalog(SourceConfig(format="diffmm", path=str(folder)))
    mmrec = load_catalog(SourceConfig(format="mmrec", path=str(real_data("tiktok_mmrec")), modalities=features))
    assert_same(diffmm, mmrec)
    first, second = (write_dataset(str(tmp_path / name), catalog, {}) for name, catalog in (("a", diffmm), ("b", mmrec)))
    assert json.dumps(first) == json.dumps(second)
    assert (first["num_users"], first["num_items"]) == (9308, 6710)
    assert first["num_interactions"] == {"train": 59541, "validation": 3051, "test": 6130}
    assert (first["users_without_train"], first["items_without_train"]) == (10, 6710 - 6245)
    rows, present = open_dataset(str(tmp_path / "a")).features("acoustic")
    np.testing.assert_array_equal(rows, np.load(folder / "audio_feat.npy"))
    assert present.all()


def test_gowalla(real_data, tmp_path):
    catalog = load_catalog(SourceConfig(format="lightgcn", path=str(real_data("gowalla"))))
    manifest = write_dataset(str(tmp_path / "dataset"), catalog, {})
    assert (manifest["num_users"], manifest["num_items"]) == (29858, 40981)
    assert manifest["num_interactions"] == {"train": 810128, "validation": 0, "test": 217242}
    assert manifest["modalities"] == {}
