"""Files that are none, have no end, or may not be read: said at once, before anything is written."""

import os
import socket
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from promptmm.core.errors import InputError
from promptmm.jobs.settings import load_settings
from promptmm.jobs.verbs import run_verb


@pytest.fixture
def source(tmp_path) -> Path:
    """A catalog in Parquet with one modality."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "source"
    folder.mkdir()
    pairs = {(int(u), int(i)) for u, i in zip(rng.integers(0, 30, 400), rng.integers(0, 20, 400))}
    users, items = zip(*sorted(pairs))
    pq.write_table(pa.table({"user": users, "item": items}), folder / "interactions.parquet")
    vectors = pa.array(rng.standard_normal((20, 4)).tolist(), pa.list_(pa.float32()))
    pq.write_table(pa.table({"item": range(20), "vector": vectors}), folder / "visual.parquet")
    return folder


def prepare(source: Path) -> Path:
    run = source.parent / "run"
    words = [
        "source.format=parquet",
        f"source.path={source}",
        "source.modalities={visual: visual.parquet}",
        "evaluation.cutoffs=[20]",
        f"run.dir={run}",
    ]
    run_verb("prepare", load_settings(None, words))
    return run


def make(path: Path, what: str) -> None:
    """Puts something in the place of a file."""
    path.unlink()
    if what == "pipe":
        os.mkfifo(path)
    elif what == "socket":
        here = os.getcwd()
        os.chdir(path.parent)  # names of sockets are short
        try:
            socket.socket(socket.AF_UNIX).bind(path.name)
        finally:
            os.chdir(here)
    elif what == "device":
        path.symlink_to("/dev/zero")
    elif what == "folder":
        path.mkdir()
    elif what == "pipe in a folder":
        path.mkdir()
        os.mkfifo(path / "part-0.parquet")
    elif what == "dangling link":
        path.symlink_to("nowhere")
    elif what == "link to itself":
        path.symlink_to(path.name)
    elif what == "nothing":
        path.write_bytes(b"")
    else:
        path.write_bytes(os.urandom(5000))


PIPE = "a pipe, a socket or a device, which has no end"


@pytest.mark.parametrize("name", ["interactions.parquet", "visual.parquet"])
@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("pipe", PIPE),
        ("socket", PIPE),
        ("device", PIPE),
        ("pipe in a folder", PIPE),
        ("folder", ""),
        ("dangling link", "no such file"),
        ("link to itself", ""),
        ("nothing", "cannot be read"),
        ("noise", "cannot be read"),
    ],
)
def test_what_is_no_file_is_refused_at_once(source, name, what, said):
    make(source / name, what)
    with pytest.raises(InputError) as found:
        prepare(source)
    assert name in str(found.value)
    assert said in str(found.value)
    assert not (source.parent / "run" / "dataset").exists()


def test_the_catalog_itself_is_fine(source):
    assert (prepare(source) / "dataset" / "manifest.json").exists()
