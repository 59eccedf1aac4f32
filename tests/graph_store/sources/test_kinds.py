"""Source formats by name: those that ship, and one of your own from a module outside the packages."""

import re
import textwrap

import pytest
from promptmm.core.errors import InputError
from promptmm.graph_store.config import SourceConfig
from promptmm.graph_store.dataset import open_dataset
from promptmm.graph_store.dataset_writer import write_dataset
from promptmm.graph_store.sources.formats import load_catalog, memory_bound
from promptmm.graph_store.sources.kinds import SOURCES, Source, source_of


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """A module own_catalog beside which the command is started; it reads a line an interaction, user>item."""
    (tmp_path / "own_catalog.py").write_text(
        textwrap.dedent("""
            from pathlib import Path

            import numpy as np
            from promptmm.graph_store.catalog import Catalog, Unsplit, ids_of
            from promptmm.graph_store.sources.kinds import Source

            def load(config):
                pairs = [line.split(">") for line in (Path(config.path) / "log.txt").read_text().split()]
                users, items = (sorted(set(side)) for side in zip(*pairs))
                indices = np.array([users.index(u) for u, _ in pairs]), np.array([items.index(i) for _, i in pairs])
                present = np.ones(len(items), bool)
                rows = {m: (np.full((len(items), 2), float(value)), present) for m, value in (config.modalities or {}).items()}
                return Catalog(ids_of(users), ids_of(items), Unsplit(indices, config), rows)

            CHECKED = Source(load, has_times=False)
            NUMBER = 3
        """)
    )
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "log.txt").write_text("\n".join(f"u{n // 5}>i{n % 7}" for n in range(40)))
    return tmp_path


def test_an_own_format_gets_the_settings_and_gives_a_dataset(own_module, tmp_path):
    config = SourceConfig(format="own_catalog:load", path=str(own_module), modalities={"price": "2.5"})
    write_dataset(str(tmp_path / "dataset"), load_catalog(config), {})
    dataset = open_dataset(str(tmp_path / "dataset"))
    assert (dataset.num_users, dataset.num_items) == (8, 7)
    assert sum(dataset.manifest["num_interactions"].values()) == 40
    assert dataset.features("price")[0].tolist() == [[2.5, 2.5]] * 7
    assert "own_catalog:load is read whole" in memory_bound(config)


def test_an_own_format_may_say_what_it_needs(own_module):
    assert SourceConfig(format="own_catalog:load").path is None  # nothing is asked of a plain function
    with pytest.raises(InputError, match=r"source\.path is not set: source\.format=own_catalog:CHECKED needs"):
        SourceConfig(format="own_catalog:CHECKED")
    with pytest.raises(InputError, match=r"source\.split=time: the own_catalog:CHECKED catalog has no times"):
        SourceConfig(format="own_catalog:CHECKED", path=str(own_module), split="time")
    assert load_catalog(SourceConfig(format="own_catalog:CHECKED", path=str(own_module))).num_users == 8


@pytest.mark.parametrize(
    ("format", "message"),
    [
        ("own_catalog:missing", "source.format='own_catalog:missing': the module own_catalog has no missing"),
        ("own_catalog:NUMBER", "NUMBER is not a function that returns a Catalog"),
        ("no_such_module_here:load", "there is no module 'no_such_module_here' here"),
        ("avro", "source.format='avro': no such source format; the kinds that ship are parquet, mmrec"),
    ],
)
def test_what_is_no_format_is_refused(own_module, format, message):
    with pytest.raises(InputError, match=re.escape(message)):
        SourceConfig(format=format)


def test_every_format_that_ships_is_a_source():
    assert all(isinstance(SOURCES.get(name), Source) for name in SOURCES.names)
    assert [name for name in SOURCES.names if not source_of(name).needs_path] == ["synthetic"]
