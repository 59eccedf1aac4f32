"""A small catalog, its dense matrices, and every linear kind that can be fitted here."""

import importlib.util

import pytest
import torch
from promptmm.core.graph import BipartiteGraph
from promptmm.core.kinds import TEACHERS
from promptmm.core.linear.fit import LinearInputs

NUM_USERS, NUM_ITEMS, GROUPS = 90, 70, 4
DIMS = {"text": 12, "sound": 9}
KINDS = tuple(name for name in TEACHERS.names if TEACHERS.get(name).is_fitted)
HERE = tuple(name for name in KINDS if name != "ials" or importlib.util.find_spec("implicit"))


@pytest.fixture(scope="session")
def graph() -> BipartiteGraph:
    """Users and items in four groups that mostly meet their own, of very different activity. The last user and item have no edge."""
    generator = torch.Generator().manual_seed(3)
    likes = torch.where(torch.arange(NUM_USERS)[:, None] % GROUPS == torch.arange(NUM_ITEMS) % GROUPS, 0.5, 0.05)
    pairs = torch.rand(NUM_USERS, NUM_ITEMS, generator=generator) < likes * torch.linspace(0.3, 1.6, NUM_USERS)[:, None]
    pairs[-1], pairs[:, -1] = False, False
    return BipartiteGraph.from_pairs(*pairs.nonzero(as_tuple=True), NUM_USERS, NUM_ITEMS)


@pytest.fixture(scope="session")
def inputs(graph) -> LinearInputs:
    """The graph with features that tell the groups, and a row that is missing."""
    generator = torch.Generator().manual_seed(4)
    features = {}
    for modality, dim in DIMS.items():
        centres = torch.randn(GROUPS, dim, generator=generator)
        features[modality] = centres[torch.arange(NUM_ITEMS) % GROUPS] + 0.7 * torch.randn(NUM_ITEMS, dim, generator=generator)
        features[modality] -= features[modality].mean(0)
    features["sound"][5] = 0
    return LinearInputs(graph, features, seed=1)


@pytest.fixture(scope="session")
def dense(graph) -> torch.Tensor:
    """A, float64 [num_users, num_items]."""
    matrix = torch.zeros(NUM_USERS, NUM_ITEMS, dtype=torch.float64)
    matrix[graph.users.rows, graph.users.columns] = 1
    return matrix
