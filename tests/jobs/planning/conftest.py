"""Catalogs that plans are made for."""

import dataclasses

import pytest
from promptmm.graph_store.config import SourceConfig
from promptmm.graph_store.dataset import Dataset, open_dataset
from promptmm.graph_store.dataset_writer import write_dataset
from promptmm.graph_store.sources.formats import load_catalog
from promptmm.jobs.settings import Settings, load_settings


def make_dataset(folder, **settings) -> Dataset:
    config = SourceConfig(synthetic_num_users=60, synthetic_num_items=40, synthetic_interactions_per_user=6.0, **settings)
    write_dataset(str(folder), load_catalog(config), {})
    return open_dataset(str(folder))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    return make_dataset(tmp_path_factory.mktemp("plan") / "dataset")


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Dataset:
    return make_dataset(tmp_path_factory.mktemp("plan") / "dataset", modalities={})


@pytest.fixture
def settings() -> Settings:
    return load_settings(None, ["teacher.dim=8", "student.dim=8"])


def large(dataset: Dataset, factor: int) -> Dataset:
    """The same catalog, many times as large: a plan reads counts only."""
    counts = {split: n * factor for split, n in dataset.manifest["num_interactions"].items()}
    manifest = {**dataset.manifest, "num_interactions": counts}
    return dataclasses.replace(dataset, manifest=manifest, num_users=dataset.num_users * factor, num_items=dataset.num_items * factor)


def fixed(settings: Settings, engine: str) -> Settings:
    return dataclasses.replace(settings, cluster=dataclasses.replace(settings.cluster, engine=engine))
