"""Expected block sizes against blocks that are sampled, and bounds that hold."""

import pytest
import torch
from promptmm.core.blocks import Blocks, graph_sampler
from promptmm.core.graph import BipartiteGraph
from promptmm.core.sampling import UnseenItems
from promptmm.graph_store.config import SourceConfig
from promptmm.graph_store.dataset import open_dataset
from promptmm.graph_store.dataset_writer import write_dataset
from promptmm.graph_store.sources.formats import load_catalog
from promptmm.jobs.planning.block_sizes import Seeds, expected, most

BATCHES = 8


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Popular and idle items, busy and idle users."""
    url = str(tmp_path_factory.mktemp("blocks") / "dataset")
    config = SourceConfig(
        synthetic_num_users=3000, synthetic_num_items=2000, synthetic_interactions_per_user=9, synthetic_popularity=1.0, modalities={}
    )
    write_dataset(url, load_catalog(config), {})
    return open_dataset(url)


@pytest.mark.parametrize(
    ("examples", "uniform", "fan_outs"),
    [(64, 64, [10, 10]), (64, 640, [5, 3]), (200, 200, [2, 3, 4]), (1000, 1000, [10]), (40, 40, [-1, -1]), (3, 3, [10, 10]), (50, 50, [])],
)
def test_expected_sizes_are_those_of_sampled_blocks(dataset, examples, uniform, fan_outs):
    """Means over eight batches, to 5 %; three examples vary more: 25 %."""
    train = dataset.csr("train")
    graph, unseen = BipartiteGraph.from_pairs(train.rows, train.columns, train.num_rows, train.num_columns), UnseenItems(train)
    found = torch.zeros(4, dtype=torch.float64)
    generator, ceiling = torch.Generator().manual_seed(0), most(dataset, Seeds(examples, uniform), fan_outs)
    for step in range(BATCHES):
        batch = torch.randperm(train.columns.numel(), generator=generator)[:examples]
        users, negatives = train.rows[batch], unseen.draw(train.rows[batch], batch, uniform // examples, 0, step)
        items = torch.cat([train.columns[batch], negatives.flatten()]).unique()
        blocks = Blocks.sample(graph_sampler(graph, fan_outs, 0, step), users.unique(), items, len(fan_outs))
        edges = sum(hop.rows.columns.numel() for hop in (*blocks.users_of, *blocks.items_of))
        counts = [blocks.users.numel(), blocks.items.numel(), sum(blocks.num_users[:-1] + blocks.num_items[:-1]), edges]
        assert all(n <= bound for n, bound in zip(counts, (ceiling.users, ceiling.items, ceiling.asked, ceiling.edges)))
        found += torch.tensor(counts, dtype=torch.float64) / BATCHES
    sizes = expected(dataset, Seeds(examples, uniform), fan_outs)
    tolerance = 0.05 if examples > 3 else 0.25
    assert found.tolist() == pytest.approx([sizes.users, sizes.items, sizes.asked, sizes.edges], rel=tolerance)


def test_further_items_are_those_that_the_blocks_lack(dataset):
    none, all_of_them = (expected(dataset, Seeds(20, 20, further), [3]) for further in (0, 10**9))
    assert none.further_items == 0
    assert all_of_them.further_items == pytest.approx(dataset.num_items - all_of_them.items)
    assert most(dataset, Seeds(20, 20, 10**9), [3]).further_items == dataset.num_items - most(dataset, Seeds(20, 20), [3]).items
