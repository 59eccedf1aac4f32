"""The graph artifact: every part's features are those of its own items, whatever the number of parts."""

import numpy as np
import pytest
from promptmm.core.errors import InputError
from promptmm.graph_store.config import GraphConfig, SourceConfig
from promptmm.graph_store.dataset import open_dataset, write_dataset
from promptmm.graph_store.formats import load_catalog
from promptmm.graph_store.partition import partition
from promptmm.graph_store.servers import map_features


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    url = str(tmp_path_factory.mktemp("partition") / "dataset")
    write_dataset(url, load_catalog(SourceConfig(synthetic_num_users=120, synthetic_num_items=80)), {})
    return open_dataset(url)


@pytest.mark.parametrize(("num_parts", "method"), [(1, "metis"), (2, "metis"), (3, "random")])
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
            own_rows, own_present = map_features(tmp_path / "graph", facts, part, modality)
            assert (own_rows == rows[original]).all()
            assert (own_present == present[original]).all()
        seen += original.tolist()
    assert sorted(seen) == list(range(dataset.num_items))


def test_more_parts_than_items_is_refused(dataset, tmp_path):
    with pytest.raises(InputError, match=r"graph\.num_parts=81 is more than"):
        partition(dataset, str(tmp_path / "graph"), GraphConfig(num_parts=81))
