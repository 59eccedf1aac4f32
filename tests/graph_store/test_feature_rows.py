"""int8 feature rows: the error is at most half a step, and readers see float32."""

import numpy as np
import pytest
import torch
from promptmm.graph_store.config import GraphConfig, SourceConfig
from promptmm.graph_store.dataset import open_dataset
from promptmm.graph_store.dataset_writer import write_dataset
from promptmm.graph_store.dgl.partition import partition
from promptmm.graph_store.feature_rows import map_features, quantise
from promptmm.graph_store.own_features import OwnFeatures
from promptmm.graph_store.ownership import Piece
from promptmm.graph_store.sources.formats import load_catalog

ROUNDING = 1 + 1e-4  # float32's, in 127 steps


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_quantised_row_is_within_half_a_step(dtype):
    random = np.random.default_rng(0)
    rows = random.standard_normal((500, 33)) * 10.0 ** random.integers(-4, 4, (500, 1))
    rows[:4] = [[0.0] * 33, [1e-40] * 33, [*[3e4] * 32, -3e4], [1e-7, *[0] * 31, 5e4]]
    rows = rows.astype(dtype)
    values, scale = quantise(rows)
    assert (values.dtype, scale.dtype) == (np.int8, np.float32)
    error = np.abs(values.astype(np.float64) * scale[:, None] - rows)
    assert (error <= scale[:, None] / 2 * ROUNDING).all()
    assert (error.max(1) > 0.4 * scale)[4:].mean() > 0.9
    large = np.abs(rows).max(1) > 1e-30
    np.testing.assert_allclose(scale[large], np.abs(rows[large].astype(np.float64)).max(1) / 127, rtol=1e-6)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    url = str(tmp_path_factory.mktemp("int8") / "dataset")
    write_dataset(url, load_catalog(SourceConfig(synthetic_num_users=60, synthetic_num_items=50, synthetic_missing=0.2)), {})
    return open_dataset(url)


def test_an_int8_graph_is_read_as_float32(dataset, tmp_path):
    """By part, and by a worker that owns pieces of two parts; the manifest has type and largest error."""
    facts = partition(dataset, str(tmp_path / "graph"), GraphConfig(num_parts=2, method="hash", features="int8"))
    for modality, info in dataset.modalities.items():
        rows, present = dataset.features(modality)
        entry = facts["modalities"][modality]
        assert {key: entry[key] for key in ("dim", "dtype", "source_dtype")} == {
            "dim": info.dim,
            "dtype": "int8",
            "source_dtype": info.dtype,
        }
        found = []
        for part in range(2):
            users = facts["parts"][part]["users"]
            own = np.fromfile(tmp_path / "graph" / f"part{part}" / "orig.i64", "<i8")[users : users + facts["parts"][part]["items"]]
            mine = map_features(tmp_path / "graph", facts, part, modality)
            assert mine.values().dtype == np.float32
            error = np.abs(mine.values() - rows[own])
            assert (error <= mine.scale[:, None] / 2 * ROUNDING).all()
            assert 0 < error.max() <= entry["max_error"] * ROUNDING
            assert (mine.values()[~present[own]] == 0).all()
            assert (mine.present == present[own]).all()
            assert (tmp_path / "graph" / f"part{part}" / "features" / f"{modality}.rows").stat().st_size == len(own) * info.dim
            sent = mine[1:3].copy()
            assert (sent.values() == mine.values()[1:3]).all()
            found.append(mine)
        ends = [len(mine) for mine in found]
        pieces = [Piece(0, 2, ends[0], 0), Piece(1, 0, ends[1] - 1, 0)]
        own_features = OwnFeatures(pieces, tmp_path / "graph", facts, modality)
        whole = np.concatenate([found[0].values()[2:], found[1].values()[:-1]])
        places = torch.tensor([len(own_features) - 1, 0, 5, ends[0] - 2])
        got, there = own_features.read(places)
        assert got.dtype == torch.float32
        assert torch.equal(got, torch.from_numpy(whole)[places])
        assert there.tolist() == np.concatenate([found[0].present[2:], found[1].present[:-1]])[places].tolist()
