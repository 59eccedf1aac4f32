"""Files by URL, on a local disk and on an object store."""

import json
import re
import uuid
from pathlib import Path

import pytest
from promptmm.core.errors import InputError
from promptmm.core.storage import exists, is_local, join, local_path, read_bytes, read_json, remove, write_bytes, write_json


@pytest.fixture(params=["local", "file", "memory"])
def url(request, tmp_path) -> str:
    """Where an artifact goes, on every kind of file system."""
    base = {"local": str(tmp_path), "file": f"file://{tmp_path}", "memory": f"memory://{uuid.uuid4().hex}"}[request.param]
    return f"{base}/run/artifact"


def fails(*parts):
    """Expects an InputError whose message has all the parts in this order."""
    return pytest.raises(InputError, match="(?s)" + ".*".join(re.escape(str(part)) for part in parts))


def test_json_without_end_is_refused(tmp_path):
    (tmp_path / "deep.json").write_text('{"a":' * 100_000)
    with pytest.raises(InputError, match=r"deep.json: not valid JSON"):
        read_json(str(tmp_path / "deep.json"))


def test_files(url):
    name = join(url, "x.json")
    with fails(f"{name}: no such file"):
        read_bytes(name)
    write_json(name, {"b": 1, "a": [1, 2]})
    assert json.loads(read_bytes(name)) == read_json(name) == {"a": [1, 2], "b": 1}
    write_bytes(name, b"{")
    with fails(f"{name}: not valid JSON"):
        read_json(name)
    assert exists(name)
    remove(name)
    assert not exists(name)
    remove(name)  # nothing to delete is not an error


def test_an_interrupted_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x"
    write_bytes(str(path), b"old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("power cut")))
    with pytest.raises(OSError, match="power cut"):
        write_bytes(str(path), b"new")
    assert path.read_bytes() == b"old"


def test_urls(tmp_path, monkeypatch):
    assert [is_local(u) for u in ("a/b", "/a", "file:///a", "s3://a/b", "memory://a")] == [True, True, True, False, False]
    assert join("s3://a/", "b", "c") == "s3://a/b/c"
    monkeypatch.chdir(tmp_path)
    assert local_path("file:///a/b") == Path("/a/b")
    assert local_path("x") == tmp_path / "x"
    with fails("nothing://a: cannot open this URL", "install the package it names or use another URL"):
        exists("nothing://a")
