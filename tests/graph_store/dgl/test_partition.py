"""The graph artifact: every part's features are those of its own items, whatever the number of parts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from promptmm.core.artifact import open_artifact
from promptmm.core.errors import InputError
from promptmm.core.graph import BipartiteGraph
from promptmm.graph_store.config import GraphConfig, SourceConfig
from promptmm.graph_store.dataset import open_dataset
from promptmm.graph_store.dataset_writer import write_dataset
from promptmm.graph_store.dgl.partition import partition
from promptmm.graph_store.feature_rows import map_features
from promptmm.graph_store.graph_artifact import files_of
from promptmm.graph_store.partition_memory import partition_memory
from promptmm.graph_store.sources.formats import load_catalog


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    url = str(tmp_path_factory.mktemp("partition") / "dataset")
    write_dataset(url, load_catalog(SourceConfig(synthetic_num_users=120, synthetic_num_items=80)), {})
    return open_dataset(url)


@pytest.mark.parametrize(("num_parts", "method"), [(1, "metis"), (2, "metis"), (3, "hash"), (2, "range")])
def test_parts_hold_every_item_once_with_its_own_features(dataset, tmp_path, num_parts, method):
    from dgl.data.utils import load_tensors

    facts = partition(dataset, str(tmp_path / "graph"), GraphConfig(num_parts=num_parts, method=method))
    seen, degrees = [], np.bincount(dataset.interactions("train")[1], minlength=dataset.num_items)
    for part, (first, last) in enumerate(facts["part_items"]):
        data = load_tensors(str(tmp_path / "graph" / f"part{part}" / "node_feat.dgl"))
        original = data["item/orig"].numpy()
        assert len(original) == last - first
        assert (data["item/degree"].numpy() == degrees[original]).all()
        for modality in dataset.modalities:
            rows, present = dataset.features(modality)
            own = map_features(tmp_path / "graph", facts, part, modality)
            assert (own.values() == rows[original]).all()
            assert (own.present == present[original]).all()
        seen += original.tolist()
    assert sorted(seen) == list(range(dataset.num_items))


def test_more_parts_than_items_is_refused(dataset, tmp_path):
    with pytest.raises(InputError, match=r"graph\.num_parts=81 is more than"):
        partition(dataset, str(tmp_path / "graph"), GraphConfig(num_parts=81))


@pytest.mark.parametrize(("num_parts", "method"), [(1, "metis"), (2, "metis"), (3, "hash")])
def test_parts_are_dgls_and_hold_every_edge_in_a_fixed_order(dataset, tmp_path, monkeypatch, num_parts, method):
    """DGL's own checks pass, and a row's neighbours and weights are the same whatever the cut."""
    import dgl
    import promptmm.graph_store.adjacency as module

    monkeypatch.setattr(module, "SORT_PAIRS", 300)  # several buckets
    monkeypatch.setenv("DGL_DIST_DEBUG", "1")
    folder = tmp_path / "graph"
    partition(dataset, str(folder), GraphConfig(num_parts=num_parts, method=method))
    whole = BipartiteGraph.from_pairs(*map(torch.from_numpy, dataset.interactions("train")), dataset.num_users, dataset.num_items)
    new = {kind: np.fromfile(folder / "nodes" / f"{kind}.i64", "<i8") for kind in ("user", "item")}
    assert sorted(np.concatenate(list(new.values()))) == list(range(dataset.num_users + dataset.num_items))
    found = 0
    for part in range(num_parts):
        graph, data, _, book, *_ = dgl.distributed.load_partition(str(folder / "promptmm.json"), part)
        original = np.fromfile(folder / f"part{part}" / "orig.i64", "<i8")
        weights = torch.from_numpy(np.fromfile(folder / f"part{part}" / "weights.f32", "<f4"))
        pointers, columns, edges = graph.adj_tensors("csc")
        assert edges.numel() == 0  # an edge's id is its place
        kinds, ids = book.map_to_per_ntype(graph.ndata[dgl.NID])
        row = 0
        for kind, csr, expected in (("user", whole.users, whole.user_weights), ("item", whole.items, whole.item_weights)):
            for node in data[f"{kind}/orig"].tolist():
                assert original[row] == node
                assert new[kind][node] == graph.ndata[dgl.NID][row]
                mine, theirs = slice(pointers[row], pointers[row + 1]), slice(csr.pointers[node], csr.pointers[node + 1])
                assert original[columns[mine]].tolist() == csr.columns[theirs].tolist()
                assert (kinds[columns[mine]] == ("item", "user").index(kind)).all()
                assert torch.equal(weights[mine], expected[theirs])
                row += 1
        found += graph.num_edges()
        assert ids.numel() == len(original)
    assert found == 2 * whole.users.columns.numel()


@pytest.mark.parametrize(("method", "features"), [("hash", "stored"), ("range", "int8"), ("metis", "stored")])
def test_the_manifest_describes_every_part(dataset, tmp_path, method, features):
    facts = partition(dataset, str(tmp_path / "graph"), GraphConfig(num_parts=3, method=method, features=features))
    new = [np.fromfile(tmp_path / "graph" / "nodes" / f"{kind}.i64", "<i8") for kind in ("user", "item")]
    config = json.loads((tmp_path / "graph" / "promptmm.json").read_text())
    first = [low for low, _ in config["node_map"]["user"]]
    owner = [np.searchsorted(first, numbers, side="right") - 1 for numbers in new]
    users, items = dataset.interactions("train")
    for part, found in enumerate(facts["parts"]):
        mine, size = [owner[0][users] == part, owner[1][items] == part], {"stored": 2, "int8": 1}[features]  # float16
        assert (found["users"], found["items"]) == tuple((side == part).sum() for side in owner)
        assert found["edges"] == mine[0].sum() + mine[1].sum()
        assert found["cut_edges"] == pytest.approx((mine[0] != mine[1]).sum() / found["edges"])
        held = [(dataset.features(m)[1][owner[1] == part].sum(), info.dim * size) for m, info in dataset.modalities.items()]
        assert found["feature_bytes"] == sum(count * (row + 4 * (features == "int8")) for count, row in held)
    assert len(facts["parts"]) == 3


def test_the_target_fits_8_gib():
    """10^8 train edges, 10^7 users and items, 768-d float32 rows, four parts."""
    for method in ("hash", "range", "metis"):
        assert partition_memory(10**7, 10**7, 10**8, 4 * 768, GraphConfig(num_parts=4, method=method))["total"] <= 8 * 2**30


@pytest.mark.whole
@pytest.mark.parametrize(("method", "num_users"), [("hash", 80_000), ("metis", 30_000)])
def test_memory_stays_under_its_bound(tmp_path, method, num_users):
    """In a process of its own, with small buffers, so that what grows with edges or nodes decides."""
    script = Path(__file__).with_name("partition_memory.py")
    words = [sys.executable, str(script), str(tmp_path), method, "4", str(num_users)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(script.parents[3] / "benchmarks")}
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["edges"] > 15 * num_users
    assert found["grown"] <= found["bound"]["total"] - found["bound"]["process"] + 32 * 2**20  # what libraries keep back
    assert found["peak"] <= found["bound"]["total"]


def test_examples_are_the_train_rows(dataset, tmp_path):
    partition(dataset, str(tmp_path / "graph"), GraphConfig())
    csr = dataset.csr("train")
    assert np.fromfile(tmp_path / "graph" / "examples" / "pointers.i64", "<i8").tolist() == csr.pointers.tolist()
    assert np.fromfile(tmp_path / "graph" / "examples" / "items.i32", "<i4").tolist() == csr.columns.tolist()
    assert not list((tmp_path / "graph").glob(".*"))


def test_range_balances_edges(dataset, tmp_path):
    partition(dataset, str(tmp_path / "graph"), GraphConfig(num_parts=4, method="range"))
    sizes = [(tmp_path / "graph" / f"part{part}" / "weights.f32").stat().st_size // 4 for part in range(4)]
    assert max(sizes) < 1.3 * sum(sizes) / 4


def test_a_host_fetches_its_own_part_only(tmp_path):
    url = str(tmp_path / "d")
    write_dataset(url, load_catalog(SourceConfig(synthetic_num_users=120, synthetic_num_items=80)), {})
    partition(open_dataset(url), "memory://two-parts/graph", GraphConfig(num_parts=2, method="hash"))
    folder, manifest = open_artifact("memory://two-parts/graph", "graph", str(tmp_path / "cache"), files_of([1]))
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - {"manifest.json"}
    assert there == {name for name in manifest["files"] if not name.startswith("part0/")}
    assert any(name.startswith("part0/") for name in manifest["files"])
    folder, _ = open_artifact("memory://two-parts/graph", "graph", str(tmp_path / "cache"), files_of([0]))
    assert (folder / "part0" / "graph.dgl").is_file()
