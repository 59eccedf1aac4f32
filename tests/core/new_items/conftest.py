"""A small catalog whose item vectors follow from features, and the bundle of a student with its map."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from promptmm.core import Recommender, load_student
from promptmm.core.graph import Csr
from promptmm.core.new_items import ItemMap, fit_item_map
from promptmm.core.serving import write_bundle
from torch import Tensor

NUM_USERS, NUM_ITEMS, DIM = 60, 150, 6
DIMS = {"visual": 9, "text": 5}


@dataclass(frozen=True)
class World:
    """Users and items of the same tastes; `visual` tells an item's taste well, `text` tells some of it, and some rows are missing."""

    users: Tensor
    items: Tensor
    train: Csr
    features: dict[str, tuple[Tensor, Tensor]]
    rows: Tensor

    def fitted(self, **changed) -> ItemMap:
        arguments = {"users": self.users, "items": self.items, "train": self.train, "features": self.features, "rows": self.rows, **changed}
        found = fit_item_map(**arguments)
        assert found is not None
        return found


def make_world(dims: dict[str, int]) -> World:
    generator = torch.Generator().manual_seed(4)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    users, items = draw(NUM_USERS, DIM), draw(NUM_ITEMS, DIM)
    best = (users @ items.T + draw(NUM_USERS, NUM_ITEMS)).topk(12, dim=1).indices
    pairs = torch.arange(NUM_USERS).repeat_interleave(12), best.flatten()
    train = Csr.from_pairs(*pairs, NUM_USERS, NUM_ITEMS)
    features = {}
    for number, (modality, dim) in enumerate(dims.items()):
        rows = 3 * items @ draw(DIM, dim) + (0.3 + number) * draw(NUM_ITEMS, dim) + 50
        present = torch.rand(NUM_ITEMS, generator=generator) > 0.1
        features[modality] = torch.where(present[:, None], rows, 0.0), present
    has_any = torch.stack([present for _, present in features.values()]).any(0)
    rows = ((torch.bincount(train.columns, minlength=NUM_ITEMS) > 0) & has_any).nonzero().flatten()
    fitted = {modality: (raw[rows], present[rows]) for modality, (raw, present) in features.items()}
    return World(users, items, train, fitted, rows)


@pytest.fixture(scope="session")
def world() -> World:
    return make_world(DIMS)


@pytest.fixture(scope="session")
def item_map(world) -> ItemMap:
    return world.fitted()


@pytest.fixture
def write_student(world) -> Callable[..., Recommender]:
    """Writes the world's student as a bundle to a URL, with a map or without, and loads it."""

    def write(url: str, item_map: ItemMap | None) -> Recommender:
        ids = [f"u{u}" for u in range(NUM_USERS)], [f"i{i}" for i in range(NUM_ITEMS)]
        write_bundle(url, world.users, world.items, *ids, world.train, {"ids.user": world.users}, {"seed": 0}, item_map)
        return load_student(url)

    return write
