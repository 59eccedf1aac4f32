"""Small catalogs as datasets, written by hand."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from promptmm.graph_store.catalog import Catalog, ids_of
from promptmm.graph_store.dataset import Dataset, open_dataset
from promptmm.graph_store.dataset_writer import write_dataset

Pairs = list[tuple[int, int]]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Dataset]:
    """Writes a dataset: (num_users, num_items, train, validation=[], test=[], features={}); rows of features may be NaN where missing."""

    def make(num_users: int, num_items: int, train: Pairs, validation: Pairs = (), test: Pairs = (), features=None) -> Dataset:
        named = {"train": train, "validation": validation, "test": test}
        interactions = {split: tuple(np.array(pairs).T) for split, pairs in named.items() if pairs}
        present = {name: (rows, ~np.isnan(rows).any(1)) for name, rows in (features or {}).items()}
        catalog = Catalog(ids_of([f"u{u}" for u in range(num_users)]), ids_of([f"i{i}" for i in range(num_items)]), interactions, present)
        url = str(tmp_path / f"dataset-{len(list(tmp_path.iterdir()))}")
        write_dataset(url, catalog, {})
        return open_dataset(url)

    return make


@pytest.fixture
def random_catalog(write) -> Callable[..., Dataset]:
    """A random catalog of some hundred interactions, with one user and some items without train interactions."""

    def make(num_users: int = 60, num_items: int = 45, num_pairs: int = 700) -> Dataset:
        rng = np.random.default_rng(3)
        keys = rng.permutation((num_users - 1) * num_items)[:num_pairs]  # the last user has no train item
        popular = np.minimum(keys % num_items, rng.integers(0, num_items, num_pairs))
        pairs = sorted({*zip((keys // num_items).tolist(), popular.tolist())})
        held = [pair for number, pair in enumerate(pairs) if number % 5 == 0]
        train = [pair for number, pair in enumerate(pairs) if number % 5 and pair[1] < num_items - 4]
        return write(
            num_users,
            num_items,
            train,
            [*held, (num_users - 1, 3)],
            features={"text": rng.standard_normal((num_items, 8)).astype(np.float32)},
        )

    return make
